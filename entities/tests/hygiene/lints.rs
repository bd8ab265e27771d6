//! Generated code is silent under lints that the author turned on, and tells of what the author
//! declared deprecated.

use stead_entities::testing::Driver;

/// Lints that look at items, names and paths, as errors.
#[deny(
    warnings,
    missing_docs,
    missing_debug_implementations,
    missing_copy_implementations,
    unreachable_pub,
    unused,
    unused_qualifications,
    unused_results,
    unused_lifetimes,
    single_use_lifetimes,
    elided_lifetimes_in_paths,
    explicit_outlives_requirements,
    let_underscore_drop,
    trivial_casts,
    trivial_numeric_casts,
    unit_bindings,
    unused_import_braces,
    variant_size_differences,
    redundant_lifetimes,
    ambiguous_negative_literals,
    meta_variable_misuse,
    nonstandard_style,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    clippy::cargo
)]
pub mod strict {
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};
    use stead_entities::{Context, Layout, Rejection, entity};

    /// Its answers.
    pub type OperationResult<T> = Result<T, Rejection>;

    /// A lock.
    #[derive(
        Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout,
    )]
    pub struct Lock {
        turns: u32,
    }

    /// Locks.
    #[entity(name = "lock")]
    impl Lock {
        /// Turns.
        pub const fn turn(&mut self, by: u32, _more: u32) -> u32 {
            self.turns += by;
            self.turns
        }

        /// Turns it back.
        ///
        /// # Errors
        /// Where it was not turned.
        pub fn back(&mut self, ctx: &mut Context, by: u32) -> OperationResult<u32> {
            ctx.cancel_reminder("back");
            self.turns = self.turns.checked_sub(by).ok_or_else(|| Rejection::new("too far"))?;
            Ok(self.turns)
        }

        /// Whether it was turned.
        ///
        /// # Errors
        /// Never.
        pub fn is_turned(&self) -> Result<bool, Rejection> {
            if self.turns > 100 {
                return Err(Rejection::new("too far"));
            }
            Ok(self.turns > 0)
        }

        /// Only for reminders.
        pub(crate) fn unused(&mut self, text: String, _more: Vec<u8>) {
            self.turns = u32::try_from(text.into_bytes().len()).unwrap_or(u32::MAX);
        }

        /// How it was done.
        #[deprecated = "use turn"]
        pub const fn twist(&mut self, by: u32, more: u32) -> u32 {
            self.turns += by + more;
            self.turns
        }

        /// The turns.
        #[must_use = "it is only read"]
        #[inline]
        pub const fn turns(&self) -> u32 {
            self.turns
        }
    }

    /// What nobody uses any more, although `JsonSchema` does in what it derives.
    #[allow(deprecated, reason = "in what is derived")]
    pub mod old {
        use super::*;

        /// A bolt.
        #[deprecated = "use Lock"]
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout,
        )]
        pub struct Bolt {
            pub(super) turns: u32,
        }
    }

    /// What a bolt was.
    #[deprecated = "use Lock"]
    #[derive(Debug, Clone, Copy, Serialize, Deserialize, Layout)]
    pub struct OldBolt {
        turns: u32,
    }

    #[allow(deprecated, reason = "it is still stored")]
    impl From<OldBolt> for old::Bolt {
        fn from(old: OldBolt) -> Self {
            Self { turns: old.turns }
        }
    }

    #[allow(deprecated, reason = "it is still there")]
    #[entity(name = "bolt", version = 2, upgrade_from(1 = OldBolt))]
    impl old::Bolt {
        /// Turns.
        pub const fn turn(&mut self, to: Self, by: u32) -> u32 {
            self.turns = to.turns + by;
            self.turns
        }
    }

    /// A private entity that is never driven.
    #[derive(
        Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout,
    )]
    struct Hidden {
        turns: u32,
    }

    #[entity(name = "hidden")]
    #[allow(unreachable_pub, reason = "an operation is `pub`, and its entity is not")]
    impl Hidden {
        pub const fn turn(&mut self, by: Turn, more: Turn) -> Turn {
            self.turns += by.by + more.by;
            more
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    struct Turn {
        by: u32,
    }
}

#[test]
fn an_entity_under_strict_lints_works() {
    let (lock, mut driver) = (strict::Lock::of("a"), Driver::<strict::Lock>::new("a"));
    assert_eq!(driver.apply(lock.turn(2, 0)).expect("turned"), 2);
    assert_eq!(driver.apply(lock.back(1)).expect("turned back"), 1);
    assert!(driver.query(lock.is_turned()).expect("turned"));
    assert_eq!(driver.query(lock.turns()).expect("turns"), 1);
}

#[test]
fn a_deprecated_operation_is_deprecated_for_callers_too() {
    #[expect(deprecated, reason = "the method of the typed reference says so")]
    let twist = strict::Lock::of("a").twist(1, 2);
    let mut driver = Driver::<strict::Lock>::new("a");
    assert_eq!(driver.apply(twist).expect("twisted"), 3);
}
