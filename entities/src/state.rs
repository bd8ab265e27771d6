//! `Layout`: what the codec will write for a state, in words.
//!
//! The store's codec writes fields by position and knows no names, so a field that is moved, added
//! or widened would be read as something else. `Layout` spells the positions out; a node compares
//! the text with the one stored beside the version and refuses to start when they differ.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt::Write as _,
};

use crate::{Timeout, Timestamp, collections::Collection, index::Scalar};

/// The positions, widths and names of what the codec writes for a type. Derive it.
///
/// What describes itself, such as `serde_json::Value` or an enum with `#[serde(tag)]`, is held as
/// [`crate::Json`]. Another type from elsewhere is declared opaque, under a name that changes when its
/// encoding does: `#[layout(opaque = "money/v1")]` on the field; a state with an opaque part is read
/// again before each commit, which takes time.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no `Layout`",
    label = "the layout of this type is not known",
    note = "derive it: `#[derive(Layout)]`; hold what describes itself, such as `serde_json::Value`, as \
            `Json<T>`; or declare the field opaque under a name that changes when its encoding \
            does: `#[layout(opaque = \"name/v1\")]`"
)]
pub trait Layout {
    /// Whether JSON can show a value of this type as a key of a map: text, a number, or a variant
    /// without fields.
    const IS_JSON_KEY: bool = false;
    /// The kind of a value that can be indexed: one scalar, or an `Option` or newtype of one.
    const SCALAR: Option<Scalar> = None;
    /// Fails to compile where a part of this type cannot be shown as JSON.
    const CHECK: () = ();
    /// Writes this type's part into `layout`.
    fn describe(layout: &mut LayoutText);
    /// Hands out the collections of a value, in the order of its parts.
    fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
        let _has_none = each;
    }
}

/// The layout text under construction: one line for each place, such as `history[].at: Timestamp`.
#[derive(Debug, Default)]
pub struct LayoutText {
    lines: String,
    path: String,
    open: Vec<&'static str>,
    /// Whether only the type itself knows that it reads what it writes.
    is_unproven: bool,
    /// Whether a state may hold what JSON cannot carry.
    may_lack_json: bool,
    /// Whether a state may hold sets or maps without an order.
    is_unordered: bool,
    /// Whether a state may hold collections, and where one is in an entry of another.
    has_collections: bool,
    nested_collection: Option<String>,
    is_in_collection: bool,
}

impl LayoutText {
    /// The text for `T`.
    pub fn of<T: Layout>() -> String {
        Self::described::<T>().lines
    }

    /// The layout of `T`.
    pub fn described<T: Layout>() -> Self {
        let mut layout = Self { path: "state".into(), ..Self::default() };
        T::describe(&mut layout);
        layout
    }

    /// Whether a part is opaque or was described by hand, so that only reading a stored state again
    /// proves that it can be read.
    pub fn is_unproven(&self) -> bool {
        self.is_unproven
    }

    /// Whether a state may hold sets or maps that are written in another order each time.
    pub fn is_unordered(&self) -> bool {
        self.is_unordered
    }

    /// Whether a state may hold what JSON cannot carry, such as a number that is not finite.
    pub fn may_lack_json(&self) -> bool {
        self.may_lack_json || self.is_unproven
    }

    /// Whether a state may hold collections, [`Map`](crate::Map)s or [`Log`](crate::Log)s.
    pub fn has_collections(&self) -> bool {
        self.has_collections
    }

    /// The place of a collection in an entry of another one, which cannot be.
    pub fn nested_collection(&self) -> Option<&str> {
        self.nested_collection.as_deref()
    }

    /// Describes a collection with its parts.
    pub fn collection(&mut self, what: &str, parts: impl FnOnce(&mut Self)) {
        self.has_collections = true;
        if self.is_in_collection {
            self.nested_collection.get_or_insert_with(|| self.path.clone());
        }
        self.proven_leaf(what);
        let is_nested = std::mem::replace(&mut self.is_in_collection, true);
        parts(self);
        self.is_in_collection = is_nested;
    }

    /// States what stands at the present place, for a type that is described by hand.
    pub fn leaf(&mut self, what: &str) {
        self.is_unproven = true;
        self.proven_leaf(what);
    }

    /// The same for a type that is known to read what it writes.
    fn proven_leaf(&mut self, what: &str) {
        let _infallible = writeln!(self.lines, "{}: {what}", self.path);
    }

    /// Describes a variant with its fields.
    pub fn variant(&mut self, name: &str, describe: impl FnOnce(&mut Self)) {
        self.place(name, |layout| {
            layout.proven_leaf("variant");
            describe(layout);
        });
    }

    /// Describes a part of the present place.
    pub fn part<T: Layout + ?Sized>(&mut self, name: &str) {
        self.place(name, T::describe);
    }

    /// Describes a part that is declared opaque.
    pub fn opaque(&mut self, name: &str, what: &str) {
        self.place(name, |layout| layout.leaf(&format!("opaque {what}")));
    }

    /// Describes the struct or enum `T`, and notices one that contains itself. Its name is not part
    /// of the layout: an earlier version's type is renamed when the next one takes its name.
    pub fn composite<T: ?Sized>(&mut self, what: &'static str, parts: impl FnOnce(&mut Self)) {
        let path = std::any::type_name::<T>();
        if let Some(place) = self.open.iter().position(|open| *open == path) {
            let levels = self.open.len() - place;
            // It may be nested deeper than JSON may be.
            self.may_lack_json = true;
            return self.proven_leaf(&format!("again the {what}, {levels} up"));
        }
        self.proven_leaf(what);
        self.open.push(path);
        parts(self);
        self.open.pop();
    }

    /// Describes one place below the present one.
    pub fn place(&mut self, name: &str, describe: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(name);
        describe(self);
        self.path.truncate(length);
    }
}

macro_rules! leaves {
    ($($(#[$kind:ident])? $type:ty => $name:literal $(as $scalar:ident)?,)*) => {
        $(impl Layout for $type {
            $(leaves!(@$kind);)?
            $(const SCALAR: Option<Scalar> = Some(Scalar::$scalar);)?
            fn describe(layout: &mut LayoutText) {
                $(leaves!(@$kind layout);)?
                layout.proven_leaf($name);
            }
        })*
    };
    // Text, or what becomes text as a key.
    (@key) => { const IS_JSON_KEY: bool = true; };
    (@key $layout:ident) => {};
    // A number that may not be finite.
    (@float) => {};
    (@float $layout:ident) => { $layout.may_lack_json = true; };
    // A time that may be beyond what its text can show.
    (@bounded) => { const IS_JSON_KEY: bool = true; };
    (@bounded $layout:ident) => { $layout.may_lack_json = true; };
}
leaves! {
    #[key] bool => "bool" as Bool, #[key] char => "char" as Text, () => "unit",
    #[key] i8 => "i8" as Integer, #[key] i16 => "i16" as Integer, #[key] i32 => "i32" as Integer, #[key] i64 => "i64" as Integer,
    #[key] i128 => "i128" as Integer, #[key] isize => "i64" as Integer,
    #[key] u8 => "u8" as Integer, #[key] u16 => "u16" as Integer, #[key] u32 => "u32" as Integer, #[key] u64 => "u64" as Integer,
    #[key] u128 => "u128" as Integer, #[key] usize => "u64" as Integer,
    #[float] f32 => "f32" as Float, #[float] f64 => "f64" as Float,
    #[key] String => "text" as Text, #[key] str => "text" as Text, #[key] std::path::PathBuf => "text",
    std::time::Duration => "seconds u64, nanoseconds u32",
    std::time::SystemTime => "seconds u64, nanoseconds u32",
    #[key] std::net::IpAddr => "ip address", #[key] std::net::Ipv4Addr => "4 bytes",
    #[key] std::net::Ipv6Addr => "16 bytes",
    #[key] std::num::NonZeroI8 => "i8" as Integer, #[key] std::num::NonZeroI16 => "i16" as Integer,
    #[key] std::num::NonZeroI32 => "i32" as Integer, #[key] std::num::NonZeroI64 => "i64" as Integer,
    #[key] std::num::NonZeroI128 => "i128" as Integer, #[key] std::num::NonZeroIsize => "i64" as Integer,
    #[key] std::num::NonZeroU8 => "u8" as Integer, #[key] std::num::NonZeroU16 => "u16" as Integer,
    #[key] std::num::NonZeroU32 => "u32" as Integer, #[key] std::num::NonZeroU64 => "u64" as Integer,
    #[key] std::num::NonZeroU128 => "u128" as Integer, #[key] std::num::NonZeroUsize => "u64" as Integer,
    #[bounded] Timestamp => "microseconds i64" as Time,
    #[bounded] Timeout => "microseconds u64" as Duration,
    #[key] jiff::Timestamp => "RFC 3339 text",
}
#[cfg(feature = "uuid")]
leaves! { #[key] uuid::Uuid => "length-prefixed 16 bytes" as Uuid, }
#[cfg(feature = "chrono")]
leaves! {
    #[key] chrono::DateTime<chrono::Utc> => "RFC 3339 text",
    #[key] chrono::DateTime<chrono::FixedOffset> => "RFC 3339 text",
    #[key] chrono::NaiveDate => "date text", #[key] chrono::NaiveTime => "time text",
    #[key] chrono::NaiveDateTime => "date and time text",
}
#[cfg(feature = "time")]
leaves! {
    #[key] time::OffsetDateTime => "year i32, day u16, h, m, s u8, ns u32, offset h, m, s i8",
    #[key] time::PrimitiveDateTime => "year i32, day u16, h, m, s u8, ns u32",
    #[key] time::Date => "year i32, day u16", #[key] time::Time => "h, m, s u8, ns u32",
    #[key] time::Duration => "seconds i64, ns i32",
}
#[cfg(feature = "rust_decimal")]
leaves! { #[key] rust_decimal::Decimal => "decimal text", }

macro_rules! sequences {
    ($($type:ident $($each:ident)?),*) => {
        $(impl<T: Layout> Layout for $type<T> {
            const CHECK: () = T::CHECK;
            fn describe(layout: &mut LayoutText) {
                layout.proven_leaf("sequence");
                layout.part::<T>("[]");
            }
            $(fn each_collection(&mut self, $each: &mut dyn FnMut(&mut dyn Collection)) {
                self.iter_mut().for_each(|part| part.each_collection($each));
            })?
        })*
    };
}
sequences!(Vec each, VecDeque each, BTreeSet);
impl<T: Layout, S> Layout for HashSet<T, S> {
    const CHECK: () = T::CHECK;
    fn describe(layout: &mut LayoutText) {
        layout.is_unordered = true;
        layout.proven_leaf("sequence");
        layout.part::<T>("[]");
    }
}

macro_rules! maps {
    ($($type:ident<K, V $(, $hasher:ident)?> is_unordered: $is_unordered:literal),*) => {
        $(impl<K: Layout, V: Layout $(, $hasher)?> Layout for $type<K, V $(, $hasher)?> {
            const CHECK: () = {
                assert!(
                    K::IS_JSON_KEY,
                    "JSON cannot show a map with keys of this type: use text, numbers, enums without \
                     fields or newtypes of those, or a list of pairs"
                );
                V::CHECK
            };
            fn describe(layout: &mut LayoutText) {
                layout.may_lack_json |= !K::IS_JSON_KEY;
                layout.is_unordered |= $is_unordered;
                layout.proven_leaf("map");
                layout.part::<K>("{key}");
                layout.part::<V>("{value}");
            }
            fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
                each_value(self.values_mut(), each);
            }
        })*
    };
}
maps!(BTreeMap<K, V> is_unordered: false, HashMap<K, V, S> is_unordered: true);

fn each_value<'v, V: Layout + 'v>(
    values: impl Iterator<Item = &'v mut V>,
    each: &mut dyn FnMut(&mut dyn Collection),
) {
    values.for_each(|value| value.each_collection(each));
}

impl<T: Layout> Layout for Option<T> {
    const SCALAR: Option<Scalar> = T::SCALAR;
    const CHECK: () = T::CHECK;
    fn describe(layout: &mut LayoutText) {
        layout.proven_leaf("option");
        layout.part::<T>("?");
    }
    fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
        each_value(self.iter_mut(), each);
    }
}
impl<T: Layout + ?Sized> Layout for Box<T> {
    const SCALAR: Option<Scalar> = T::SCALAR;
    const IS_JSON_KEY: bool = T::IS_JSON_KEY;
    const CHECK: () = T::CHECK;
    fn describe(layout: &mut LayoutText) {
        T::describe(layout);
    }
    fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
        (**self).each_collection(each);
    }
}
impl<T: Layout + ToOwned + ?Sized> Layout for std::borrow::Cow<'_, T> {
    const SCALAR: Option<Scalar> = T::SCALAR;
    const IS_JSON_KEY: bool = T::IS_JSON_KEY;
    const CHECK: () = T::CHECK;
    fn describe(layout: &mut LayoutText) {
        T::describe(layout);
    }
}
impl<T: Layout, E: Layout> Layout for Result<T, E> {
    const CHECK: () = {
        let _ = (T::CHECK, E::CHECK);
    };
    fn describe(layout: &mut LayoutText) {
        layout.proven_leaf("result");
        layout.part::<T>("::Ok");
        layout.part::<E>("::Err");
    }
    fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
        match self {
            Ok(value) => value.each_collection(each),
            Err(error) => error.each_collection(each),
        }
    }
}
impl<T: Layout, const N: usize> Layout for [T; N] {
    const CHECK: () = T::CHECK;
    fn describe(layout: &mut LayoutText) {
        layout.proven_leaf(&format!("array of {N}"));
        layout.part::<T>("[]");
    }
    fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
        each_value(self.iter_mut(), each);
    }
}

macro_rules! tuples {
    ($(($($part:ident $index:tt),+)),*) => {
        $(impl<$($part: Layout),+> Layout for ($($part,)+) {
            const CHECK: () = { let _ = ($($part::CHECK,)+); };
            fn describe(layout: &mut LayoutText) {
                layout.proven_leaf("tuple");
                $(layout.part::<$part>(concat!(".", $index));)+
            }
            fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
                $(self.$index.each_collection(each);)+
            }
        })*
    };
}
tuples!(
    (A 0), (A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3), (A 0, B 1, C 2, D 3, E 4),
    (A 0, B 1, C 2, D 3, E 4, F 5), (A 0, B 1, C 2, D 3, E 4, F 5, G 6),
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7)
);
