//! Dependencies: what an entity needs of the program that hosts it, such as a client or a pool, for its
//! operations that await and for its queries.
//!
//! A type names what it needs, the program gives it, and a node that misses some does not start. Operations
//! that do not await are pure, and get none.

use std::{
    any::{Any, TypeId, type_name},
    collections::BTreeMap,
    fmt,
    sync::Arc,
};

/// A dependency that a type of entities names: `#[entity(needs(HttpClient))]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dependency {
    id: TypeId,
    name: &'static str,
}

impl Dependency {
    /// The dependency on a `T`.
    pub fn of<T: Send + Sync + 'static>() -> Self {
        Self { id: TypeId::of::<T>(), name: type_name::<T>() }
    }

    /// The name of its type.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// The values that are given, one of each type.
#[derive(Clone, Default)]
pub struct Dependencies(BTreeMap<TypeId, (&'static str, Arc<dyn Any + Send + Sync>)>);

impl Dependencies {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives a value, in place of an earlier one of its type.
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.0.insert(TypeId::of::<T>(), (type_name::<T>(), Arc::new(value)));
        self
    }

    /// Whether a value of this type is given.
    pub fn has<T: 'static>(&self) -> bool {
        self.0.contains_key(&TypeId::of::<T>())
    }

    /// The value of this type.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let (_, value) = self.0.get(&TypeId::of::<T>())?;
        Arc::clone(value).downcast().ok()
    }

    /// Those of them that are named.
    #[must_use]
    pub fn only(&self, named: &[Dependency]) -> Self {
        let is_named = |id: &TypeId| named.iter().any(|dependency| dependency.id == *id);
        let some = self.0.iter().filter(|(id, _)| is_named(id));
        Self(some.map(|(id, value)| (*id, value.clone())).collect())
    }

    /// The names of those that are named and not given.
    pub fn missing(&self, named: &[Dependency]) -> Vec<&'static str> {
        let missing = named.iter().filter(|dependency| !self.0.contains_key(&dependency.id));
        missing.map(Dependency::name).collect()
    }
}

impl fmt::Debug for Dependencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.values().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_given() {
        let given = Dependencies::new().with(5_u8).with("text").with(6_u8);
        let named = [Dependency::of::<u8>(), Dependency::of::<String>()];
        assert_eq!(given.missing(&named), ["alloc::string::String"]);
        let only = given.only(&named);
        assert_eq!((only.get::<u8>().as_deref(), only.get::<&str>()), (Some(&6), None));
        assert!(given.has::<&str>() && !only.has::<&str>());
        assert_eq!(format!("{only:?}"), r#"["u8"]"#);
    }
}
