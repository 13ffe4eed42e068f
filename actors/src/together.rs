//! Work of several partitions that comes at the same time, done together.
//!
//! Whoever comes while there is a turn to have does what is there; whoever comes meanwhile hands in
//! their work and either hears what became of it or has the next turn. Nobody waits for more to come.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

struct Waiting<Work, Said> {
    partition: u16,
    work: Work,
    answer: oneshot::Sender<Said>,
}

/// Work that waits to be done.
pub struct Together<Work, Said> {
    waiting: Mutex<Vec<Waiting<Work, Said>>>,
    turns: Semaphore,
}

impl<Work, Said> std::fmt::Debug for Together<Work, Said> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Together").finish_non_exhaustive()
    }
}

impl<Work, Said> Together<Work, Said> {
    /// With so many turns at the same time.
    pub fn new(turns: usize) -> Self {
        Self { waiting: Mutex::default(), turns: Semaphore::new(turns.max(1)) }
    }

    /// Has work done by `done`, by itself or with that of others: it is given in the order of the
    /// partitions, of each one piece at most, and an answer to each is expected in the same order.
    /// None: whoever did it ended in the middle, and may have done it or not. Dropped before it is
    /// answered the work may still be done.
    pub async fn hand_in<Doing>(
        &self,
        partition: u16,
        work: Work,
        done: impl Fn(Vec<Work>) -> Doing,
    ) -> Option<Said>
    where
        Doing: Future<Output = Vec<Said>>,
    {
        let (answer, mut answered) = oneshot::channel();
        self.lock().push(Waiting { partition, work, answer });
        loop {
            tokio::select! {
                biased;
                said = &mut answered => return said.ok(),
                turn = self.turns.acquire() => {
                    let (all, answers): (Vec<_>, Vec<_>) = self.next().into_iter().unzip();
                    // Somebody has it already: the answer comes from them.
                    if all.is_empty() {
                        drop(turn);
                        return answered.await.ok();
                    }
                    for (answer, said) in answers.into_iter().zip(done(all).await) {
                        // Who has gone does not want to know.
                        let _: Result<(), _> = answer.send(said);
                    }
                }
            }
        }
    }

    /// What is done next: the first piece of each partition, in the order of the partitions.
    fn next(&self) -> Vec<(Work, oneshot::Sender<Said>)> {
        let mut waiting = self.lock();
        let (mut next, mut later): (Vec<Waiting<_, _>>, Vec<_>) = (Vec::new(), Vec::new());
        for one in waiting.drain(..) {
            let is_first = next.iter().all(|other| other.partition != one.partition);
            if is_first { next.push(one) } else { later.push(one) }
        }
        *waiting = later;
        next.sort_unstable_by_key(|one| one.partition);
        next.into_iter().map(|one| (one.work, one.answer)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waiting<Work, Said>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinHandle;

    use super::*;

    /// Keeps what was done together, once it may.
    struct Desk {
        together: Together<(u16, u64), u64>,
        may: Semaphore,
        done: Mutex<Vec<Vec<(u16, u64)>>>,
    }

    impl Desk {
        fn new(turns: usize) -> Arc<Self> {
            let together = Together::new(turns);
            Arc::new(Self { together, may: Semaphore::new(0), done: Mutex::default() })
        }

        async fn hand_in(self: Arc<Self>, partition: u16, number: u64) -> Option<u64> {
            self.together.hand_in(partition, (partition, number), |all| self.work(all)).await
        }

        async fn work(&self, all: Vec<(u16, u64)>) -> Vec<u64> {
            self.may.acquire().await.unwrap().forget();
            self.done.lock().unwrap().push(all.clone());
            all.into_iter().map(|(partition, number)| u64::from(partition) * 100 + number).collect()
        }

        /// One begins, and the others come while it works.
        async fn all(self: &Arc<Self>, work: &[(u16, u64)]) -> Vec<JoinHandle<Option<u64>>> {
            let mut running = Vec::new();
            for (partition, number) in work {
                running.push(tokio::spawn(self.clone().hand_in(*partition, *number)));
                tokio::task::yield_now().await;
            }
            running
        }
    }

    async fn answers(running: Vec<JoinHandle<Option<u64>>>) -> Vec<Option<u64>> {
        let mut answers = Vec::new();
        for one in running {
            answers.push(one.await.unwrap());
        }
        answers
    }

    #[tokio::test]
    async fn what_comes_meanwhile_is_done_together_and_each_hears_of_its_own() {
        let desk = Desk::new(1);
        let running = desk.all(&[(3, 1), (2, 5), (0, 7), (1, 2), (0, 8)]).await;
        desk.may.add_permits(10);
        let all = answers(running).await;
        assert_eq!(all, [301, 205, 7, 102, 8].map(Some));
        // A second piece of a partition comes after its first.
        let done = desk.done.lock().unwrap().clone();
        assert_eq!(done, [vec![(3, 1)], vec![(0, 7), (1, 2), (2, 5)], vec![(0, 8)]]);
    }

    #[tokio::test]
    async fn two_turns_are_had_at_the_same_time() {
        let desk = Desk::new(2);
        let running = desk.all(&[(0, 1), (1, 1), (2, 1), (3, 1)]).await;
        desk.may.add_permits(10);
        answers(running).await;
        let sizes: Vec<_> = desk.done.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 1, 2]);
    }

    /// Whoever works for others may be gone before it is done.
    #[tokio::test]
    async fn who_waits_hears_when_nobody_works_for_them_any_more() {
        let desk = Desk::new(1);
        let mut running = desk.all(&[(0, 1), (1, 1), (2, 1)]).await;
        // The first had only its own; the next one takes the others', and ends as well.
        running.remove(0).abort();
        while !desk.together.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        running.remove(0).abort();
        assert_eq!(answers(running).await, [None]);
        // The next comer is not held up by any of it.
        desk.may.add_permits(1);
        assert_eq!(desk.clone().hand_in(5, 5).await, Some(505));
    }
}
