//! Questions that `#[entity]` asks the compiler, because it sees names and not types.
//!
//! The name of an answer may be an alias of `Result<T, Rejection>`, or with a `Failure`. A trait cannot
//! tell the two apart, since it would be implemented for every type and for results once more. A constant can:
//! one of the type itself is found before one of a trait. The constant is then an argument of
//! [`Returned`], which so has one implementation for each case.

use std::{fmt, marker::PhantomData};

use crate::{Context, DeadLetter, Failure, Rejection};

/// The kind of a result, seen through type aliases. For `#[entity]`.
///
/// The constant of a `Result` with a [`Rejection`] or a [`Failure`] belongs to the type itself and is found before
/// that of [`PlainResult`], which every other answer has.
pub struct ResultKind<R>(PhantomData<fn() -> R>);

impl<T> ResultKind<Result<T, Rejection>> {
    /// Whether the answer may be a rejection or a failure.
    pub const IS_FALLIBLE: bool = true;
}
impl<T> ResultKind<Result<T, Failure>> {
    /// Whether the answer may be a rejection or a failure.
    pub const IS_FALLIBLE: bool = true;
}
impl<T, E> ResultKind<Result<T, E>> {
    /// Whether the answer is a `Result`, whatever its error.
    pub const IS_RESULT: bool = true;
}

/// The [`ResultKind`] of a result that is not a `Result`.
pub trait PlainResult {
    /// No rejection, and no failure.
    const IS_FALLIBLE: bool = false;
    /// No `Result`.
    const IS_RESULT: bool = false;
}
impl<R> PlainResult for ResultKind<R> {}

/// The value that a caller gets of an answer, given whether it may be a rejection or a failure.
pub trait Returned<const IS_FALLIBLE: bool> {
    /// The `T` of such a `Result`; any other answer as it is.
    type Value;
}
impl<T> Returned<false> for T {
    type Value = T;
}
impl<T> Returned<true> for Result<T, Rejection> {
    type Value = T;
}
impl<T> Returned<true> for Result<T, Failure> {
    type Value = T;
}

impl<R> fmt::Debug for ResultKind<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResultKind")
    }
}

/// The context, by whatever name. For `#[entity]`, which asks when an argument is borrowed.
#[diagnostic::on_unimplemented(
    message = "an argument comes from JSON and is owned: take `{Self}` itself",
    label = "only the context is borrowed"
)]
pub trait IsContext {}
impl IsContext for Context {}

/// Compiles for the context only.
pub const fn is_context<T: IsContext>() {}

/// The arguments of an operation that hears of dead letters. For `#[entity]`.
#[diagnostic::on_unimplemented(
    message = "the operation that `on_dead_letter` names takes one argument, a `DeadLetter`",
    label = "not `(DeadLetter,)`"
)]
pub trait IsDeadLetter {}
impl IsDeadLetter for (DeadLetter,) {}

/// Compiles for a dead letter only.
pub const fn is_dead_letter<T: IsDeadLetter>() {}

#[cfg(test)]
mod tests {
    use super::*;

    type Alias<T = ()> = Result<T, Rejection>;

    fn value<R: Returned<FALLIBLE>, const FALLIBLE: bool>() -> &'static str {
        std::any::type_name::<R::Value>()
    }

    #[test]
    fn an_answer_is_told_by_its_type() {
        const ALIAS: bool = ResultKind::<Alias<u8>>::IS_FALLIBLE;
        const PLAIN: bool = ResultKind::<Option<u8>>::IS_FALLIBLE;
        assert_eq!(value::<Alias<u8>, ALIAS>(), "u8");
        assert_eq!(value::<Option<u8>, PLAIN>(), std::any::type_name::<Option<u8>>());
        let kinds = [
            (ResultKind::<Alias>::IS_RESULT, ResultKind::<Alias>::IS_FALLIBLE),
            (ResultKind::<fmt::Result>::IS_RESULT, ResultKind::<fmt::Result>::IS_FALLIBLE),
            (ResultKind::<String>::IS_RESULT, ResultKind::<String>::IS_FALLIBLE),
        ];
        assert_eq!(kinds, [(true, true), (true, false), (false, false)]);
    }
}
