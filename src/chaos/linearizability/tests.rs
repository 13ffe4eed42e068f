use proptest::prelude::*;

use super::*;

type Op = Operation<Call, Answer>;

const START: Held = Held { value: 0, version: 1 };
const ALONE: Register = Register { start: START, events_per_write: 1, others_write: false };
const AMONG_OTHERS: Register = Register { start: START, events_per_write: 1, others_write: true };

fn op(call: Call, invoked: u64, answered: u64, answer: Answer) -> Op {
    Operation { client: 0, call, invoked, answered: Some((answered, answer)), over: None }
}

fn write(value: i64, invoked: u64, answered: u64, version: u64) -> Op {
    op(Call::Write { value, expected: None }, invoked, answered, Answer::Written { version })
}

fn write_if(value: i64, expected: u64, invoked: u64, answered: u64, answer: Answer) -> Op {
    op(Call::Write { value, expected: Some(expected) }, invoked, answered, answer)
}

fn read(invoked: u64, answered: u64, value: i64, version: u64) -> Op {
    op(Call::Read, invoked, answered, Answer::Found(Held { value, version }))
}

fn lost(call: Call, invoked: u64) -> Op {
    Operation { client: 0, call, invoked, answered: None, over: None }
}

fn violated(model: Register, history: &[Op]) -> Violation<Held> {
    match check(&model, history) {
        Verdict::Violated(violation) => violation,
        other => panic!("{other:?} for {:?}", &history[..history.len().min(20)]),
    }
}

fn fine(model: Register, history: &[Op]) {
    let verdict = check(&model, history);
    let few = &history[..history.len().min(20)];
    assert_eq!(verdict, Verdict::Linearizable, "{few:?}");
}

#[test]
fn one_after_the_other_is_fine() {
    fine(ALONE, &[]);
    fine(ALONE, &[write(7, 0, 1, 2), read(2, 3, 7, 2), write(8, 4, 5, 3), read(6, 7, 8, 3)]);
}

#[test]
fn what_overlaps_may_have_gone_either_way() {
    fine(ALONE, &[write(7, 0, 10, 2), read(1, 2, 0, 1), read(3, 4, 7, 2)]);
    fine(ALONE, &[write(7, 0, 10, 3), write(8, 0, 10, 2), read(11, 12, 7, 3)]);
    // At the same microsecond they overlap.
    fine(ALONE, &[read(0, 5, 7, 2), write(7, 5, 6, 2)]);
}

#[test]
fn a_stale_read_is_found_and_shown() {
    let history = [
        write(5, 0, 1, 2),
        write(6, 2, 3, 3),
        write(9, 4, 20, 4),
        read(10, 11, 5, 2),
        read(30, 31, 9, 4),
    ];
    let violation = violated(ALONE, &history);
    assert_eq!((violation.operation, &*violation.prefix), (3, &[0, 1, 2, 3][..]));
    assert_eq!(violation.window, [2, 3]);
    assert_eq!(violation.before, [Held { value: 6, version: 3 }]);
    let text = violation.explain(&history);
    assert!(text.contains("» client 0 at 0: Read") && text.contains("value: 6"), "{text}");
    // Without the last of them all is well.
    fine(ALONE, &history[..3]);
}

#[test]
fn reads_never_go_back() {
    let history = [write(7, 0, 100, 2), read(1, 2, 7, 2), read(3, 4, 0, 1)];
    assert_eq!(violated(ALONE, &history).operation, 2);
}

#[test]
fn a_lost_update_is_found() {
    // Both saw version 1 and both were told that they were first.
    let told = Answer::Written { version: 2 };
    let history = [write_if(7, 1, 0, 9, told), write_if(8, 1, 1, 8, told)];
    assert_eq!(violated(ALONE, &history).window, [0, 1]);
    let right = [history[0].clone(), write_if(8, 1, 1, 8, Answer::Mismatch { current: Some(2) })];
    fine(ALONE, &right);
    // An acknowledged write that nobody sees any more.
    let history = [write(7, 0, 1, 2), read(2, 3, 0, 1)];
    assert_eq!(violated(ALONE, &history).operation, 1);
}

#[test]
fn a_refusal_must_be_deserved() {
    let refused = |current| Answer::Mismatch { current };
    assert_eq!(violated(ALONE, &[write_if(7, 1, 0, 1, refused(Some(1)))]).operation, 0);
    assert_eq!(violated(ALONE, &[write_if(7, 1, 0, 1, refused(None))]).operation, 0);
    assert_eq!(violated(ALONE, &[write_if(7, 2, 0, 1, refused(Some(3)))]).operation, 0);
    fine(ALONE, &[write_if(7, 2, 0, 1, refused(Some(1)))]);
    fine(ALONE, &[write_if(7, 1, 0, 1, Answer::NotDone), read(2, 3, 0, 1)]);
    // What was surely not done is not seen.
    let seen = [write_if(7, 1, 0, 1, Answer::NotDone), read(2, 3, 7, 2)];
    assert_eq!(violated(ALONE, &seen).operation, 1);
}

#[test]
fn an_unknown_outcome_may_come_late_or_never_but_not_early_or_twice() {
    let unknown = lost(Call::Write { value: 7, expected: None }, 10);
    let and = |more: &[Op]| [std::slice::from_ref(&unknown), more].concat();
    fine(ALONE, &and(&[read(20, 21, 0, 1)]));
    fine(ALONE, &and(&[read(20, 21, 7, 2)]));
    fine(ALONE, &and(&[read(20, 21, 0, 1), read(30, 31, 7, 2)]));
    assert_eq!(violated(ALONE, &and(&[read(0, 1, 7, 2)])).operation, 1);
    assert_eq!(violated(ALONE, &and(&[read(20, 21, 7, 2), read(30, 31, 0, 1)])).operation, 2);
    let twice = and(&[read(20, 21, 7, 2), write(8, 30, 31, 3), read(40, 41, 7, 4)]);
    assert_eq!(violated(ALONE, &twice).operation, 3);
    // A conditional one happens only if its condition holds.
    let conditional = lost(Call::Write { value: 7, expected: Some(1) }, 0);
    let history = [conditional, write(8, 10, 11, 2), read(20, 21, 7, 3)];
    assert_eq!(violated(ALONE, &history).operation, 2);
}

#[test]
fn what_is_over_does_not_happen_any_more() {
    let unknown = Op { over: Some(20), ..lost(Call::Write { value: 7, expected: None }, 10) };
    fine(ALONE, &[unknown.clone(), read(20, 31, 7, 2)]);
    fine(ALONE, &[unknown.clone(), read(21, 31, 7, 2)]);
    let late = [unknown, read(15, 19, 0, 1), read(21, 22, 0, 1), read(30, 31, 7, 2)];
    assert_eq!(violated(ALONE, &late).operation, 3);
}

#[test]
fn what_is_already_so_changes_nothing() {
    fine(ALONE, &[write(0, 0, 1, 1), read(2, 3, 0, 1)]);
    assert_eq!(violated(ALONE, &[write(0, 0, 1, 2)]).operation, 0);
}

#[test]
fn a_write_may_lead_to_several_events() {
    let twice = Register { events_per_write: 2, ..ALONE };
    fine(twice, &[write(7, 0, 1, 3), read(2, 3, 7, 3)]);
    assert_eq!(violated(twice, &[write(7, 0, 1, 2)]).operation, 0);
    assert_eq!(violated(twice, &[write(7, 0, 9, 3), read(2, 3, 7, 2)]).operation, 1);
}

#[test]
fn others_may_raise_the_version_and_no_more() {
    let history = [
        write(7, 0, 1, 5),
        read(2, 3, 7, 9),
        write_if(8, 12, 4, 5, Answer::Written { version: 13 }),
    ];
    fine(AMONG_OTHERS, &history);
    assert_eq!(violated(ALONE, &history).operation, 0);
    let back = [write(7, 0, 1, 5), read(2, 3, 7, 4)];
    assert_eq!(violated(AMONG_OTHERS, &back).operation, 1);
    let changed = [write(7, 0, 1, 5), read(2, 3, 8, 9)];
    assert_eq!(violated(AMONG_OTHERS, &changed).operation, 1);
}

/// A long history of many clients, as a load test records it: each `lost_every`-th operation that
/// is a write has no answer and is over some rounds later.
fn long(clients: u64, rounds: u64, lost_every: u64) -> Vec<Op> {
    let mut state = START;
    let mut history = Vec::new();
    for round in 0..rounds {
        for client in 0..clients {
            let number = round * clients + client;
            let (invoked, answered) = (number * 10, number * 10 + 10 * clients - 5);
            if number.is_multiple_of(3) {
                let found = Answer::Found(state);
                history.push(op(Call::Read, invoked, answered, found));
                continue;
            }
            let value = i64::try_from(number + 1).unwrap();
            let call = Call::Write { value, expected: None };
            if number.is_multiple_of(lost_every) {
                // Every other one of them happened.
                if number.is_multiple_of(2 * lost_every) {
                    state = Held { value, version: state.version + 1 };
                }
                let over = Some(invoked + 10 * clients * 8);
                history.push(Op { over, ..lost(call, invoked) });
                continue;
            }
            state = Held { value, version: state.version + 1 };
            history.push(op(call, invoked, answered, Answer::Written { version: state.version }));
        }
    }
    history
}

#[test]
fn long_histories_of_many_clients_are_decided() {
    let mut history = long(16, 400, 40);
    assert!(
        history.len() > 6_000 && history.iter().filter(|of| of.answered.is_none()).count() > 100
    );
    fine(ALONE, &history);
    // One stale read in the middle of it.
    let stale = history.iter().rposition(|of| of.call == Call::Read).unwrap() / 2;
    let stale = (stale..).find(|index| history[*index].call == Call::Read).unwrap();
    let Some((_, Answer::Found(held))) = &mut history[stale].answered else { panic!() };
    held.version -= 40;
    let violation = violated(ALONE, &history);
    assert_eq!(violation.operation, stale);
    assert!(violation.window.len() < 100, "{}", violation.window.len());
}

#[test]
fn a_recorder_keeps_what_happened() {
    let recorder = Recorder::default();
    let first = recorder.invoked(1, Call::Read);
    let second = recorder.invoked(2, Call::Write { value: 3, expected: None });
    recorder.answered(&first, Answer::NotDone);
    drop(second);
    recorder.settled();
    let history = recorder.history();
    assert_eq!(history.len(), 2);
    assert!(history[0].answered.as_ref().is_some_and(|(at, _)| *at >= history[0].invoked));
    assert_eq!(history[0].over, None);
    assert!(history[1].over.is_some_and(|over| over >= history[1].invoked));
    assert!(history[1].answered.is_none() && history[1].invoked >= history[0].invoked);
}

/// Every order there is, tried one by one.
fn by_brute_force(model: &Register, state: Held, left: &[&Op]) -> bool {
    if left.iter().all(|of| of.answered.is_none()) {
        return true;
    }
    let first_answer = left.iter().filter_map(|of| of.answered.map(|(at, _)| at)).min();
    (0..left.len()).any(|next| {
        let of = left[next];
        if first_answer.is_some_and(|at| of.invoked > at) {
            return false;
        }
        let rest: Vec<_> =
            left.iter().enumerate().filter(|(at, _)| *at != next).map(|(_, of)| *of).collect();
        let answer = of.answered.as_ref().map(|(_, answer)| answer);
        let after = model.step(&state, &of.call, answer);
        after.is_some_and(|after| by_brute_force(model, after, &rest))
    })
}

/// One operation: what, how long before and after its instant it began and was answered, and
/// whether the answer is known, wrong, or the thing never happened.
type Plan = (Call, u64, u64, Fate);

#[derive(Debug, Clone)]
enum Fate {
    Right,
    Lost { happened: bool },
    Wrong(Answer),
}

fn call() -> impl Strategy<Value = Call> {
    let expected = proptest::option::of(1..4_u64);
    prop_oneof![
        Just(Call::Read),
        (0..4_i64, expected).prop_map(|(value, expected)| Call::Write { value, expected }),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    let held = (0..4_i64, 1..5_u64).prop_map(|(value, version)| Held { value, version });
    let wrong = prop_oneof![
        held.prop_map(Answer::Found),
        (1..5_u64).prop_map(|version| Answer::Written { version }),
        proptest::option::of(1..5_u64).prop_map(|current| Answer::Mismatch { current }),
        Just(Answer::NotDone),
    ];
    prop_oneof![
        4 => Just(Fate::Right),
        1 => any::<bool>().prop_map(|happened| Fate::Lost { happened }),
        1 => wrong.prop_map(Fate::Wrong),
    ]
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    proptest::collection::vec((call(), 0..25_u64, 0..25_u64, fate()), 0..8)
}

fn right_answer(state: Held, call: Call) -> (Held, Answer) {
    match call {
        Call::Read => (state, Answer::Found(state)),
        Call::Write { expected: Some(expected), .. } if expected != state.version => {
            (state, Answer::Mismatch { current: Some(state.version) })
        }
        Call::Write { value, .. } => {
            let version = state.version + u64::from(value != state.value);
            (Held { value, version }, Answer::Written { version })
        }
    }
}

/// What clients would have recorded, and whether every answer in it is right.
fn recorded(plans: &[Plan]) -> (Vec<Op>, bool) {
    let (mut state, mut right) = (START, true);
    let mut history = Vec::new();
    for (number, (call, before, after, fate)) in (3..).zip(plans) {
        let instant = number * 10;
        let (next, answer) = right_answer(state, *call);
        let answer = match fate {
            Fate::Right => Some(answer),
            Fate::Lost { .. } => None,
            Fate::Wrong(wrong) => {
                right = false;
                Some(*wrong)
            }
        };
        if !matches!(fate, Fate::Lost { happened: false }) {
            state = next;
        }
        let answered = answer.map(|answer| (instant + after, answer));
        history.push(Operation {
            client: 0,
            call: *call,
            invoked: instant - before,
            answered,
            over: None,
        });
    }
    (history, right)
}

proptest! {
    #[test]
    fn it_finds_what_trying_every_order_finds(plans in plans(), others_write: bool) {
        let (history, right) = recorded(&plans);
        let model = Register { others_write, ..ALONE };
        let verdict = check(&model, &history);
        let expected = by_brute_force(&model, START, &history.iter().collect::<Vec<_>>());
        prop_assert_eq!(verdict.is_linearizable(), expected, "{:?}", history);
        prop_assert!(expected || !right, "what happened in order was refused: {:?}", history);
        if let Verdict::Violated(violation) = verdict {
            let prefix: Vec<Op> =
                violation.prefix.iter().map(|index| history[*index].clone()).collect();
            prop_assert!(!check(&model, &prefix).is_linearizable(), "{:?}", violation);
            prop_assert!(violation.window.iter().all(|of| violation.prefix.contains(of)));
        }
    }
}
