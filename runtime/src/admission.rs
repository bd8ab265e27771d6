//! The bounds of a node: how many requests, and how many bytes of them, it holds at one time.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::Config;

/// Both counts in one number, so that admitting is one step: requests above, bytes below.
const REQUEST: u64 = 1 << BYTES_BITS;
const BYTES_BITS: u32 = 40;

/// How much a node holds at present.
#[derive(Debug, Default)]
pub(crate) struct Load(AtomicU64);

/// Room for one request, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    load: Arc<Load>,
    share: u64,
}

impl Load {
    /// Room for a request of so many bytes, if there is any.
    pub(crate) fn admit(self: &Arc<Self>, bytes: usize, limits: &Config) -> Option<Permit> {
        let share = REQUEST + bytes as u64;
        let held = self.0.fetch_add(share, Ordering::Relaxed) + share;
        let permit = Permit { load: self.clone(), share };
        let (requests, bytes) = (held >> BYTES_BITS, held & (REQUEST - 1));
        let fits =
            requests <= limits.requests_max as u64 && bytes <= limits.request_bytes_max as u64;
        fits.then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.0.fetch_sub(self.share, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_in_number_and_bytes_and_given_back() {
        let limits = Config { requests_max: 2, request_bytes_max: 100, ..Config::default() };
        let load = Arc::new(Load::default());
        let first = load.admit(60, &limits).expect("room");
        assert!(load.admit(60, &limits).is_none(), "too many bytes");
        let _second = load.admit(40, &limits).expect("room");
        assert!(load.admit(0, &limits).is_none(), "too many requests");
        drop(first);
        let _third = load.admit(60, &limits).expect("room again");
    }
}
