//! `Layout`: what the codec will write for a state, in words.
//!
//! The store's codec writes fields by position and knows no names, so a field that is moved, added
//! or widened would be read as something else. `Layout` spells the positions out; a node compares
//! the text with the one stored beside the version and refuses to start when they differ.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt::Write as _,
};

use crate::{Timeout, Timestamp};

/// The positions, widths and names of what the codec writes for a type. Derive it.
///
/// A type from elsewhere is declared opaque, under a name that changes when its encoding does:
/// `#[layout(opaque = "money/v1")]` on the field.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no `Layout`",
    label = "the layout of this type is not known",
    note = "derive it: `#[derive(Layout)]`, or declare the field opaque under a name that changes \
            when its encoding does: `#[layout(opaque = \"name/v1\")]`"
)]
pub trait Layout {
    /// Writes this type's part into `layout`.
    fn describe(layout: &mut LayoutText);
}

/// The layout text under construction: one line for each place, such as `history[].at: Timestamp`.
#[derive(Debug, Default)]
pub struct LayoutText {
    lines: String,
    path: String,
    open: Vec<&'static str>,
}

impl LayoutText {
    /// The text for `T`.
    pub fn of<T: Layout>() -> String {
        let mut layout = Self { path: "state".into(), ..Self::default() };
        T::describe(&mut layout);
        layout.lines
    }

    /// States what stands at the present place.
    pub fn leaf(&mut self, what: &str) {
        let _infallible = writeln!(self.lines, "{}: {what}", self.path);
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
            return self.leaf(&format!("again the {what}, {levels} up"));
        }
        self.leaf(what);
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
    ($($type:ty => $name:literal,)*) => {
        $(impl Layout for $type {
            fn describe(layout: &mut LayoutText) {
                layout.leaf($name);
            }
        })*
    };
}
leaves! {
    bool => "bool", char => "char", () => "unit",
    i8 => "i8", i16 => "i16", i32 => "i32", i64 => "i64", i128 => "i128", isize => "i64",
    u8 => "u8", u16 => "u16", u32 => "u32", u64 => "u64", u128 => "u128", usize => "u64",
    f32 => "f32", f64 => "f64", String => "text", str => "text", std::path::PathBuf => "text",
    std::time::Duration => "seconds u64, nanoseconds u32",
    std::time::SystemTime => "seconds u64, nanoseconds u32",
    std::net::IpAddr => "ip address", std::net::Ipv4Addr => "4 bytes", std::net::Ipv6Addr => "16 bytes",
    std::num::NonZeroI8 => "i8", std::num::NonZeroI16 => "i16", std::num::NonZeroI32 => "i32",
    std::num::NonZeroI64 => "i64", std::num::NonZeroI128 => "i128", std::num::NonZeroIsize => "i64",
    std::num::NonZeroU8 => "u8", std::num::NonZeroU16 => "u16", std::num::NonZeroU32 => "u32",
    std::num::NonZeroU64 => "u64", std::num::NonZeroU128 => "u128", std::num::NonZeroUsize => "u64",
    Timestamp => "microseconds i64", Timeout => "microseconds u64",
    jiff::Timestamp => "RFC 3339 text",
}
#[cfg(feature = "uuid")]
leaves! { uuid::Uuid => "length-prefixed 16 bytes", }
#[cfg(feature = "chrono")]
leaves! {
    chrono::DateTime<chrono::Utc> => "RFC 3339 text",
    chrono::DateTime<chrono::FixedOffset> => "RFC 3339 text",
    chrono::NaiveDate => "date text", chrono::NaiveTime => "time text",
    chrono::NaiveDateTime => "date and time text",
}
#[cfg(feature = "time")]
leaves! {
    time::OffsetDateTime => "year i32, day u16, h, m, s u8, ns u32, offset h, m, s i8",
    time::PrimitiveDateTime => "year i32, day u16, h, m, s u8, ns u32",
    time::Date => "year i32, day u16", time::Time => "h, m, s u8, ns u32",
    time::Duration => "seconds i64, ns i32",
}
#[cfg(feature = "rust_decimal")]
leaves! { rust_decimal::Decimal => "decimal text", }

macro_rules! sequences {
    ($($type:ident),*) => {
        $(impl<T: Layout> Layout for $type<T> {
            fn describe(layout: &mut LayoutText) {
                layout.leaf("sequence");
                layout.part::<T>("[]");
            }
        })*
    };
}
sequences!(Vec, VecDeque, BTreeSet);
impl<T: Layout, S> Layout for HashSet<T, S> {
    fn describe(layout: &mut LayoutText) {
        layout.leaf("sequence");
        layout.part::<T>("[]");
    }
}

macro_rules! maps {
    ($($type:ident<K, V $(, $hasher:ident)?>),*) => {
        $(impl<K: Layout, V: Layout $(, $hasher)?> Layout for $type<K, V $(, $hasher)?> {
            fn describe(layout: &mut LayoutText) {
                layout.leaf("map");
                layout.part::<K>("{key}");
                layout.part::<V>("{value}");
            }
        })*
    };
}
maps!(BTreeMap<K, V>, HashMap<K, V, S>);

impl<T: Layout> Layout for Option<T> {
    fn describe(layout: &mut LayoutText) {
        layout.leaf("option");
        layout.part::<T>("?");
    }
}
impl<T: Layout> Layout for Box<T> {
    fn describe(layout: &mut LayoutText) {
        T::describe(layout);
    }
}
impl<T: Layout + ToOwned + ?Sized> Layout for std::borrow::Cow<'_, T> {
    fn describe(layout: &mut LayoutText) {
        T::describe(layout);
    }
}
impl<T: Layout, E: Layout> Layout for Result<T, E> {
    fn describe(layout: &mut LayoutText) {
        layout.leaf("result");
        layout.part::<T>("::Ok");
        layout.part::<E>("::Err");
    }
}
impl<T: Layout, const N: usize> Layout for [T; N] {
    fn describe(layout: &mut LayoutText) {
        layout.leaf(&format!("array of {N}"));
        layout.part::<T>("[]");
    }
}

macro_rules! tuples {
    ($(($($part:ident $index:tt),+)),*) => {
        $(impl<$($part: Layout),+> Layout for ($($part,)+) {
            fn describe(layout: &mut LayoutText) {
                layout.leaf("tuple");
                $(layout.part::<$part>(concat!(".", $index));)+
            }
        })*
    };
}
tuples!(
    (A 0), (A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3), (A 0, B 1, C 2, D 3, E 4),
    (A 0, B 1, C 2, D 3, E 4, F 5), (A 0, B 1, C 2, D 3, E 4, F 5, G 6),
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7)
);
