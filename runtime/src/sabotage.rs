//! Breaks one protection on purpose, so that it can be shown which test notices. Compiled only with
//! the feature `sabotage`; the environment variable `STEAD_SABOTAGE` names the break.

/// Whether the protection `name` is to be broken.
#[cfg(feature = "sabotage")]
pub(crate) fn is(name: &str) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("STEAD_SABOTAGE").ok()).as_deref() == Some(name)
}

/// Never, in a build without the feature `sabotage`.
#[cfg(not(feature = "sabotage"))]
pub(crate) const fn is(_name: &str) -> bool {
    false
}
