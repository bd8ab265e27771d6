//! Runs what awaits without a runtime.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use crate::{CallError, Error, ErrorKind};

/// The most times that a future which wakes itself is polled.
const POLLS_MAX: usize = 1_000_000;

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Polls a future for as long as it wakes itself. It does not wait for what others do, such as a
/// timer or a task: on the thread of a runtime they could not go on meanwhile, and a test would hang
/// where it can say what is wrong.
pub(super) fn at_once<T>(
    future: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    for _ in 0..POLLS_MAX {
        if !woken.0.swap(false, Ordering::Relaxed) {
            break;
        }
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
    }
    let message = "an operation awaits what is not ready: wait for it with apply_async, \
                   advance_async or signal_async, on a runtime if it needs one";
    Err(Error::new(ErrorKind::Invalid, message).into())
}
