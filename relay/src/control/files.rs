//! The limit of open files, and the number of connections that it allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, Sharing};

/// Descriptors reserved for everything but clients and listeners: Kafka's connections, rings, eventfds, maps.
const OTHERS: u64 = 1000;

/// Raises the limit of open files to the hard limit, which any process may do. Returns the limit; None: there
/// is none.
pub(super) fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit { current: maximum, maximum };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => return maximum,
            Err(error) => {
                tracing::warn!(%error, ?current, "cannot raise the limit of open files");
            }
        }
    }
    current
}

/// Lowers the limit of connections so that files are left for everything else; without one the relay could
/// not reconnect to a broker that was away. Logs it if the limit becomes lower than configured.
pub(super) fn fit(config: &mut Config, workers: usize, limit: Option<u64>) {
    let configured = config.relay.max_connections;
    // Of each family.
    let listeners = 2 * workers * Sharing::of(&config.services).ports().count();
    let others = OTHERS + u64::try_from(listeners).unwrap_or(u64::MAX);
    let most = limit.and_then(|limit| most_connections((limit, others), workers, configured));
    let Some(most) = most else {
        return;
    };
    config.relay.max_connections = most;
    tracing::warn!(
        open_files = limit,
        workers,
        configured,
        "too few files may be open for relay.max_connections of each worker: each accepts only \
         {most}; raise the hard limit (`ulimit -Hn`, LimitNOFILE=), or lower relay.max_connections"
    );
}

/// The number of connections that a worker may have, if that is less than configured.
fn most_connections((limit, others): (u64, u64), workers: usize, configured: u32) -> Option<u32> {
    let left = limit - others.min(limit / 2);
    let each = left / u64::try_from(workers.max(1)).unwrap_or(u64::MAX);
    // What is on its way when a worker is full is accepted too: `EngineLimits::with_overshoot`.
    let most = (each - each / 17).min(each.saturating_sub(16));
    let most = u32::try_from(most.max(1)).unwrap_or(u32::MAX);
    (most < configured).then_some(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        assert_eq!(most_connections((1 << 20, OTHERS), 8, 8192), None);
        assert_eq!(most_connections((20_000, OTHERS), 2, 8192), None);
        assert_eq!(most_connections((20_000, OTHERS), 4, 8192), Some(4471));
        assert_eq!(most_connections((4096, OTHERS), 1, 8192), Some(2914));
        assert_eq!(most_connections((1024, OTHERS), 2, 8192), Some(240), "half of few");
        assert_eq!(most_connections((0, OTHERS), 2, 8192), Some(1));
        assert_eq!(most_connections((20_000, 3000), 2, 8192), Some(8000), "with many ports");
    }
}
