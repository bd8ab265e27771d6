//! Combinators: several operations at one time, with results that follow from the history alone.
//!
//! Each branch is a scope of its own, so that what is changed in one does not move the places in another. A branch is
//! polled only when something that it waits for has happened. A race is won by the branch that rests on what came first,
//! and not by who is polled first.

use std::{
    cmp::Reverse,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{Stream as _, stream::FuturesUnordered};

use super::{
    core::Core,
    place::{Place, Scope},
};
use crate::sabotage::Sabotage;

/// A future that is polled in a scope of its own. Its output comes with what it rests on.
#[allow(
    unreachable_pub,
    missing_debug_implementations,
    reason = "named by a public trait, for nobody to use"
)]
pub struct Branch<F> {
    core: Arc<Core>,
    scope: Scope,
    future: Pin<Box<F>>,
}

impl<F: Future> Branch<F> {
    fn new(core: &Arc<Core>, root: &Place, number: usize, future: F) -> Self {
        let number = u32::try_from(number + 1).unwrap_or(u32::MAX);
        Self { core: core.clone(), scope: root.branch(number), future: Box::pin(future) }
    }
}

impl<F: Future> Future for Branch<F> {
    type Output = (F::Output, u64);
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let outer = this.core.enter(std::mem::take(&mut this.scope));
        let polled = this.future.as_mut().poll(cx);
        let (scope, seen) = this.core.leave(outer);
        this.scope = scope;
        polled.map(|output| (output, seen))
    }
}

/// The place of a combinator.
fn root(core: &Core) -> Place {
    core.lock().scope.claim()
}

/// A race of several branches.
#[must_use = "it begins when it is awaited"]
pub struct Race<B> {
    core: Arc<Core>,
    /// None once one has won: the others are given up in the same turn.
    branches: Option<B>,
}

/// All of several branches.
#[must_use = "it begins when it is awaited"]
pub struct All<B> {
    core: Arc<Core>,
    branches: B,
}

/// A branch of an [`All`], with its output once it is there.
#[allow(
    unreachable_pub,
    missing_debug_implementations,
    reason = "named by a public trait, for nobody to use"
)]
pub struct Kept<F: Future> {
    branch: Branch<F>,
    output: Option<F::Output>,
}

// The future is boxed, and outputs are never pinned.
impl<F: Future> Unpin for Kept<F> {}

impl<F: Future> Kept<F> {
    /// Polls it unless it is done; says whether it is. Adds what it rests on.
    fn poll(&mut self, cx: &mut Context<'_>, seen: &mut u64) -> bool {
        if self.output.is_none()
            && let Poll::Ready((output, rests_on)) = Pin::new(&mut self.branch).poll(cx)
        {
            self.output = Some(output);
            *seen = (*seen).max(rests_on);
        }
        self.output.is_some()
    }
}

/// Several branches, as a tuple of futures.
pub trait Branches: private::Sealed {
    /// The output of whichever comes first.
    type First;
    /// The outputs of all, in their order.
    type Outputs;
    /// The future of the first.
    type Race: Future<Output = Self::First> + Send;
    /// The future of all.
    type All: Future<Output = Self::Outputs> + Send;
    #[doc(hidden)]
    fn race(self, core: &private::Handle) -> Self::Race;
    #[doc(hidden)]
    fn all(self, core: &private::Handle) -> Self::All;
}

pub(super) mod private {
    use std::sync::Arc;

    use super::Core;

    /// Keeps others from implementing it.
    pub trait Sealed {}

    /// The core, for combinators.
    #[derive(Clone)]
    #[allow(missing_debug_implementations, reason = "nobody sees it")]
    pub struct Handle(pub(in crate::workflow) Arc<Core>);
}

macro_rules! branches {
    ($first:ident: $($future:ident $variant:ident $at:tt),+) => {
        /// The branch of a race that came first, with its output.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $first<$($future),+> {
            $(
                #[doc = concat!("The branch at ", stringify!($at), ", counted from 0.")]
                $variant($future),
            )+
        }

        impl<$($future: IntoFuture),+> private::Sealed for ($($future,)+) {}

        impl<$($future),+> Branches for ($($future,)+)
        where
            $($future: IntoFuture, $future::IntoFuture: Send, $future::Output: Send,)+
        {
            type First = $first<$($future::Output),+>;
            type Outputs = ($($future::Output,)+);
            type Race = Race<($(Branch<$future::IntoFuture>,)+)>;
            type All = All<($(Kept<$future::IntoFuture>,)+)>;

            fn race(self, core: &private::Handle) -> Self::Race {
                let root = root(&core.0);
                let branches = ($(Branch::new(&core.0, &root, $at, self.$at.into_future()),)+);
                Race { core: core.0.clone(), branches: Some(branches) }
            }
            fn all(self, core: &private::Handle) -> Self::All {
                let root = root(&core.0);
                let branches = ($(
                    Kept { branch: Branch::new(&core.0, &root, $at, self.$at.into_future()), output: None },
                )+);
                All { core: core.0.clone(), branches }
            }
        }

        impl<$($future: Future),+> Future for Race<($(Branch<$future>,)+)> {
            type Output = $first<$($future::Output),+>;
            fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
                let this = &mut *self;
                let mut won: Option<(u64, Self::Output)> = None;
                let branches = this.branches.as_mut().expect("a race is not polled when it is won");
                $(
                    if let Poll::Ready((output, seen)) = Pin::new(&mut branches.$at).poll(cx)
                        && won.as_ref().is_none_or(|(before, _)| seen < *before || Sabotage::RaceByPosition.is_on())
                    {
                        won = Some((seen, $first::$variant(output)));
                    }
                )+
                let Some((seen, output)) = won else { return Poll::Pending };
                this.core.rest_on(seen);
                this.branches = None;
                Poll::Ready(output)
            }
        }

        impl<$($future: Future),+> Future for All<($(Kept<$future>,)+)> {
            type Output = ($($future::Output,)+);
            fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
                let this = &mut *self;
                let (mut seen, mut are_done) = (0, true);
                $(are_done &= this.branches.$at.poll(cx, &mut seen);)+
                this.core.rest_on(seen);
                match are_done {
                    true => Poll::Ready(($(
                        this.branches.$at.output.take().expect("every branch is done"),
                    )+)),
                    false => Poll::Pending,
                }
            }
        }
    };
}

branches!(Of2: A First 0, B Second 1);
branches!(Of3: A First 0, B Second 1, C Third 2);
branches!(Of4: A First 0, B Second 1, C Third 2, D Fourth 3);
branches!(Of5: A First 0, B Second 1, C Third 2, D Fourth 3, E Fifth 4);
branches!(Of6: A First 0, B Second 1, C Third 2, D Fourth 3, E Fifth 4, F Sixth 5);

impl<B> std::fmt::Debug for Race<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Race")
    }
}
impl<B> std::fmt::Debug for All<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("All")
    }
}

/// A branch among many, with its place among them.
struct Numbered<F> {
    number: usize,
    branch: Branch<F>,
}

impl<F: Future> Future for Numbered<F> {
    type Output = (usize, F::Output, u64);
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let number = self.number;
        let polled = Pin::new(&mut self.branch).poll(cx);
        polled.map(|(output, seen)| (number, output, seen))
    }
}

/// Many branches. Those that are done at the same poll come out in the order of what they rest on, and then of
/// their numbers.
pub(super) struct Many<F: Future> {
    core: Arc<Core>,
    running: FuturesUnordered<Numbered<F>>,
    /// Those that are done and were not handed out, the last one first.
    done: Vec<(u64, usize, F::Output)>,
}

impl<F: Future> Many<F> {
    pub(super) fn new<I>(core: &Arc<Core>, futures: I) -> Self
    where
        I: IntoIterator,
        I::Item: IntoFuture<IntoFuture = F, Output = F::Output>,
    {
        let root = root(core);
        let numbered = futures.into_iter().enumerate().map(|(number, future)| Numbered {
            number,
            branch: Branch::new(core, &root, number, future.into_future()),
        });
        // In the order in which they are given, which is the order in which they begin.
        let running = FuturesUnordered::new();
        numbered.for_each(|future| running.push(future));
        Self { core: core.clone(), running, done: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.running.len() + self.done.len()
    }

    /// The next one that is done: its number and its output; `None` behind the last one.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, F::Output)>> {
        if self.done.is_empty() {
            while let Poll::Ready(Some((number, output, seen))) =
                Pin::new(&mut self.running).poll_next(cx)
            {
                self.done.push((seen, number, output));
            }
            if !Sabotage::RaceByPosition.is_on() {
                self.done.sort_by_key(|(seen, number, _)| Reverse((*seen, *number)));
            }
        }
        match self.done.pop() {
            Some((seen, number, output)) => {
                self.core.rest_on(seen);
                Poll::Ready(Some((number, output)))
            }
            None if self.running.is_empty() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    pub(super) async fn next(&mut self) -> Option<(usize, F::Output)> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}
