//! How it works, what it promises, and how to run it.

#[doc = include_str!("architecture.md")]
pub mod architecture {}
// Its example shares a database.
#[cfg_attr(all(feature = "postgres", feature = "peers"), doc = include_str!("cluster.md"))]
#[cfg_attr(
    not(all(feature = "postgres", feature = "peers")),
    doc = "Many nodes: with the features `postgres` and `peers`."
)]
pub mod cluster {}
#[doc = include_str!("embedding.md")]
pub mod embedding {}
#[doc = include_str!("glossary.md")]
pub mod glossary {}
#[doc = include_str!("guarantees.md")]
pub mod guarantees {}
#[doc = include_str!("http.md")]
pub mod http {}
#[doc = include_str!("invariants.md")]
pub mod invariants {}
#[cfg_attr(feature = "server", doc = include_str!("operations.md"))]
#[cfg_attr(not(feature = "server"), doc = "How it is run: with the feature `server`.")]
pub mod operations {}
#[doc = include_str!("postgres.md")]
pub mod postgres {}
#[doc = include_str!("sizing.md")]
pub mod sizing {}
#[doc = include_str!("storage-format.md")]
pub mod storage_format {}
