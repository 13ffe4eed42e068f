//! When nothing new is taken from outside because something runs short.

/// What changes with a look.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// There is too little left.
    Short,
    /// There is enough again.
    Enough,
}

/// Shut from below the minimum that must be left, until there is a quarter more than that: what is
/// freed and used again does not switch it to and fro.
#[derive(Debug)]
pub(crate) struct Gate {
    minimum: u64,
    is_shut: bool,
}

impl Gate {
    /// Open, and shut from the first look on that finds less than so much.
    pub(crate) fn new(minimum: u64) -> Self {
        Self { minimum, is_shut: false }
    }

    /// What must be left.
    pub(crate) fn minimum(&self) -> u64 {
        self.minimum
    }

    /// What becomes of it with so much left.
    pub(crate) fn look(&mut self, left: u64) -> Option<Change> {
        let enough = self.minimum.saturating_add(self.minimum / 4);
        if !self.is_shut && left < self.minimum {
            self.is_shut = true;
            return Some(Change::Short);
        }
        if self.is_shut && left >= enough {
            self.is_shut = false;
            return Some(Change::Enough);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_shut_from_below_the_minimum_until_a_quarter_above_it() {
        let mut gate = Gate::new(1_000);
        assert_eq!(gate.look(1_000), None);
        assert_eq!(gate.look(999), Some(Change::Short));
        assert_eq!(gate.look(0), None, "it is said once");
        assert_eq!(gate.look(1_249), None);
        assert_eq!(gate.look(1_250), Some(Change::Enough));
        assert_eq!(gate.look(1_000), None);
    }
}
