//! Looks at how much memory the process uses, and has the runtime take nothing new from outside
//! before it has used up what it may.
//!
//! Whoever uses more than its control group may is killed, with everything that is under way. From nine
//! tenths on nothing is begun that is not begun yet; reads go on, and so do sagas, timers and
//! subscribers, which end and let go of what they hold.

use std::path::Path;
use std::time::Duration;

use souk_actors::command::Refusal;
use souk_actors::runtime::Runtime;
use tokio::time::MissedTickBehavior;

use crate::gate::{Change, Gate};

/// What is said while there is too little memory. For clients it is one kind of overload among others.
pub const HIGH: Refusal = Refusal {
    code: "overloaded",
    message: "the service's memory is almost used up, so nothing new is taken and nothing happened; \
              reads go on. Repeat this after a while",
    retry_after: Duration::from_secs(10),
};

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// The part of the limit that must be left: a tenth.
const LEFT_MIN: u64 = 10;

/// The look-out of one service.
#[derive(Debug)]
pub struct Watch {
    limit: u64,
    gate: Gate,
    runtime: Runtime,
}

impl Watch {
    /// One for this limit in bytes, or for what the machine and the control group allow; none where
    /// nobody knows, or nobody wants to.
    pub fn new(limit: Option<u64>, runtime: Runtime) -> Option<Self> {
        let limit = limit.or_else(|| limit_of(Path::new("/"))).filter(|limit| *limit > 0)?;
        // Where it is not known how much is used, nobody can tell whether it is too much.
        resident()?;
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("souk_memory_limit_bytes").set(limit as f64);
        Some(Self { limit, gate: Gate::new(limit / LEFT_MIN), runtime })
    }

    /// Looks again and again, for ever.
    pub async fn run(mut self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.look();
        }
    }

    /// Looks once. What cannot be looked at leaves things as they are.
    pub fn look(&mut self) {
        let Some(resident) = resident() else { return };
        let limit = self.limit;
        match self.gate.look(limit.saturating_sub(resident)) {
            Some(Change::Short) => {
                self.runtime.refuse_outside(HIGH);
                metrics::gauge!("souk_memory_high").set(1.0);
                tracing::error!(
                    resident,
                    limit,
                    "memory is almost used up: nothing new is taken from outside \
                     (MEMORY_LIMIT_BYTES). Give it more, or fewer clients; commands are taken again \
                     by themselves"
                );
            }
            Some(Change::Enough) => {
                self.runtime.accept_outside(HIGH);
                metrics::gauge!("souk_memory_high").set(0.0);
                tracing::info!(resident, limit, "there is enough memory again: commands are taken");
            }
            None => {}
        }
    }
}

/// How many bytes of memory this process has; none: the system does not say.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kibibytes(&status, "VmRSS:")
}

/// A figure of a file of `/proc` that has one a line, in KiB.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let figure = text.lines().find_map(|line| line.strip_prefix(name))?;
    figure.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

/// How many bytes this process may use: the least of what its control groups (of either version) and
/// the machine have; none: the system does not say.
fn limit_of(root: &Path) -> Option<u64> {
    let text = |path: &Path| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let groups = text(Path::new("proc/self/cgroup"));
    let of_groups = groups.lines().filter_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let (folder, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // What holds for a group holds for those within it. A container may see no more of the path
        // than its end, as the root.
        let above = Path::new(group.trim_start_matches('/')).ancestors();
        let limit = |group: &Path| text(&Path::new(folder).join(group).join(file));
        above.filter_map(|group| limit(group).trim().parse::<u64>().ok()).min()
    });
    let of_machine = kibibytes(&text(Path::new("proc/meminfo")), "MemTotal:");
    of_groups.chain(of_machine).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit on a machine of one GiB with these files.
    fn limit(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        let machine = ("proc/meminfo", "MemTotal:        1048576 kB\nMemFree:  99 kB\n");
        for (path, text) in files.iter().chain([&machine]) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        limit_of(root.path())
    }

    #[test]
    fn the_limit_is_the_least_that_holds_for_the_process() {
        assert_eq!(limit(&[]), Some(1 << 30), "nobody limits it but the machine");
        let group = ("proc/self/cgroup", "0::/souk.slice/souk.service\n");
        let own = "sys/fs/cgroup/souk.slice/souk.service/memory.max";
        let above = "sys/fs/cgroup/souk.slice/memory.max";
        assert_eq!(limit(&[group, (own, "max\n")]), Some(1 << 30));
        assert_eq!(limit(&[group, (own, "max\n"), (above, "4096\n")]), Some(4_096));
        assert_eq!(limit(&[group, (own, "2048\n"), (above, "4096\n")]), Some(2_048));
        let container = [("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "8192\n")];
        assert_eq!(limit(&container), Some(8_192));
        let old = ("proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/docker/abc\n");
        let of_old = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(limit(&[old, (of_old, "16384\n")]), Some(16_384));
        assert_eq!(limit(&[old, (of_old, "9223372036854771712\n")]), Some(1 << 30));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_some_memory() {
        assert!(resident().unwrap() > 1 << 20);
    }

    #[test]
    fn nobody_knows_where_nothing_is_said() {
        assert_eq!(limit_of(tempfile::tempdir().unwrap().path()), None);
        assert_eq!(kibibytes("VmRSS:\t 12 kB\n", "VmRSS:"), Some(12 * 1_024));
        assert_eq!(kibibytes("VmRSS:\tmuch\n", "VmRSS:"), None);
    }
}
