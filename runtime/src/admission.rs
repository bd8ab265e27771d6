//! The bounds of a node: how many requests, and how many bytes of them, it holds at one time.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{Config, memory::Memory};

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
    pub(crate) fn admit(
        self: &Arc<Self>,
        bytes: usize,
        limits: &Config,
        memory: &Memory,
    ) -> Option<Permit> {
        let share = REQUEST + bytes as u64;
        let held = self.0.fetch_add(share, Ordering::Relaxed) + share;
        let permit = Permit { load: self.clone(), share };
        let (requests, bytes) = (held >> BYTES_BITS, held & (REQUEST - 1));
        let bytes_max = limits.request_bytes_max.min(memory.request_bytes_max()) as u64;
        let fits = requests <= limits.requests_max as u64 && bytes <= bytes_max;
        (fits && !memory.is_full()).then_some(permit)
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
        let (load, memory) = (Arc::new(Load::default()), Memory::of(&limits));
        let admit = |bytes| load.admit(bytes, &limits, &memory);
        let first = admit(60).expect("room");
        assert!(admit(60).is_none(), "too many bytes");
        let _second = admit(40).expect("room");
        assert!(admit(0).is_none(), "too many requests");
        drop(first);
        let _third = admit(60).expect("room again");
        memory.measured(limits.memory);
        drop(_third);
        assert!(admit(0).is_none(), "memory is used up");
    }
}
