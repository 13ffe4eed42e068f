//! A switch that many wait for. They are woken in the order in which they came, so that a run that
//! is repeated takes the same course; `tokio::sync::watch` wakes them in a random one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// See the module. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flag(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    set: AtomicBool,
    changed: Notify,
}

impl Flag {
    /// A flag that is up or down.
    pub(crate) fn new(set: bool) -> Self {
        let flag = Self::default();
        flag.set(set);
        flag
    }

    /// Whether it is up.
    pub(crate) fn get(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    /// Puts it up or down, and wakes who waits for that.
    pub(crate) fn set(&self, set: bool) {
        self.0.set.store(set, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    /// Waits until it is up (or, with `false`, down).
    pub(crate) async fn wait(&self, set: bool) {
        loop {
            // `notify_waiters` wakes whatever was made before it, awaited or not.
            let changed = self.0.changed.notified();
            if self.get() == set {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_wait_are_woken_in_order() {
        let flag = Flag::new(false);
        let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..20 {
            let (flag, send) = (flag.clone(), send.clone());
            tokio::spawn(async move {
                flag.wait(true).await;
                let _ = send.send(number);
            });
        }
        tokio::task::yield_now().await;
        flag.set(true);
        flag.wait(true).await;
        for number in 0..20 {
            assert_eq!(receive.recv().await, Some(number));
        }
    }
}
