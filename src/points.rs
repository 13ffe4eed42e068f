//! The service's own fault points, beside those of the runtime
//! ([`souk_actors::faults::points`]). For development builds with the feature `chaos` only.

use souk_actors::faults::points::{self, Armed, Point, Unreadable};

/// The points of the service.
pub const POINTS: &[Point] = &[
    Point::at(
        "projection.before_commit",
        &["projections/view.rs"],
        "A projection has written its rows and its checkpoint; nothing is committed.",
    )
    .failing(),
    Point::at(
        "projection.after_commit",
        &["projections/view.rs"],
        "A projection has committed; its subscription has not noted it.",
    ),
    Point::at(
        "gateway.after_charge",
        &["subscribers/payment_gateway.rs"],
        "The provider has charged; no event says so.",
    )
    .failing(),
    Point::at(
        "gateway.after_refund",
        &["subscribers/payment_gateway.rs"],
        "The provider has given money back; no event says so.",
    )
    .failing(),
    Point::at(
        "mail.after_send",
        &["subscribers/mail_sender.rs"],
        "A mail is handed over; no event says so.",
    )
    .failing(),
    Point::at(
        "migration.read",
        &["projections/db.rs"],
        "The read models' tables are there; nobody reads them yet.",
    ),
    Point::at(
        "startup.before_ready",
        &["serve.rs"],
        "Everything is started; the server has not said that it is ready.",
    ),
    Point::at(
        "shutdown.during_drain",
        &["serve.rs"],
        "Requests are answered and no more are taken; the actors are not drained.",
    ),
];

/// All lists of points.
pub const ALL: [&[Point]; 2] = [points::POINTS, POINTS];

/// What is to happen at which points, from its text.
pub fn parse(text: &str) -> Result<Vec<Armed>, Unreadable> {
    points::parse(text, &ALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_declared_once() {
        let all = ALL.iter().copied().flatten().map(|point| point.name);
        let mut names: Vec<_> = all.collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(count >= 20);
    }

    #[test]
    fn the_services_points_are_found_too() {
        let armed = parse("mail.after_send:fail:after=2,lease.acquired").unwrap();
        assert_eq!(
            (armed[0].point.name, armed[1].point.name),
            ("mail.after_send", "lease.acquired")
        );
    }
}
