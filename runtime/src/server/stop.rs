//! Signals that ask the process to end.
//!
//! They are taken from its first instruction on: the kernel keeps a signal from a process that is the
//! first of its container (PID 1) as long as it has no handler for it, and nobody sends it twice.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
    low_level::{emulate_default_handler, pipe},
};

/// The signals that stop a server.
#[derive(Debug)]
pub(super) struct Stop {
    /// Bytes arrive here with each signal.
    told: UnixStream,
    /// The signal that came last.
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// Takes SIGTERM, SIGINT and SIGHUP from now on, without a runtime.
    pub(super) fn listen() -> io::Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        let (told, tell) = UnixStream::pair()?;
        told.set_nonblocking(true)?;
        for number in [SIGTERM, SIGINT, SIGHUP] {
            let noted = usize::try_from(number).unwrap_or_default();
            // The number first: whoever is told looks at it.
            flag::register_usize(number, signal.clone(), noted)?;
            pipe::register(number, tell.try_clone()?)?;
        }
        Ok(Self { told, signal })
    }

    /// Ready when a signal has come, also one that came before this was called.
    pub(super) async fn asked(&self) -> io::Result<()> {
        let told = tokio::net::UnixStream::from_std(self.told.try_clone()?)?;
        // The byte stays where it is, for whoever asks next.
        told.readable().await
    }

    /// Ends the process as the signal that has come does where nobody takes it.
    pub(super) fn end(&self) -> io::Result<()> {
        match i32::try_from(self.signal.load(Ordering::SeqCst)) {
            Ok(signal) if signal > 0 => emulate_default_handler(signal),
            _ => Ok(()),
        }
    }
}
