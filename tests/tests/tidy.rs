//! The rules of the house that a machine can check.

use std::{fs, path::Path, path::PathBuf};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// Every Rust file of the workspace, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut files = Vec::new();
    for folder in ["benches", "entities", "runtime", "examples", "tests"] {
        collect(&root.join(folder), &mut files);
    }
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("readable");
        (path.strip_prefix(root).expect("below the root").to_owned(), text)
    };
    files.into_iter().map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn files_hold_one_thought() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| text.lines().count() > FILE_LINES_MAX)
        .map(|(path, text)| format!("{}: {}", path.display(), text.lines().count()))
        .collect();
    assert!(long.is_empty(), "over {FILE_LINES_MAX} lines: {long:#?}");
}

#[test]
fn functions_hold_one_thought() {
    let mut long = Vec::new();
    for (path, text) in sources() {
        let mut start: Option<(usize, usize, String)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let is_start = line.trim_start().split("fn ").next().is_some_and(|before| {
                line.contains("fn ")
                    && before.split_whitespace().all(|word| {
                        ["pub", "async", "const"].contains(&word) || word.starts_with("pub(")
                    })
            });
            if start.is_none() && is_start && !line.trim_end().ends_with(';') {
                start = Some((number, indent, line.trim().to_owned()));
            }
            if let Some((_, depth, _)) = &start
                && indent == *depth
                && line.trim_end().ends_with(';')
            {
                // A declaration over several lines.
                start = None;
            }
            if let Some((first, depth, name)) = &start
                && indent == *depth
                && (line.trim() == "}" || line.trim_end().ends_with('}') && number == *first)
            {
                if number - first + 1 > FUNCTION_LINES_MAX {
                    long.push(format!("{}:{}: {name}", path.display(), first + 1));
                }
                start = None;
            }
        }
    }
    assert!(long.is_empty(), "over {FUNCTION_LINES_MAX} lines: {long:#?}");
}

#[test]
fn every_foreign_crate_has_one_home() {
    let homes = [
        ("ractor::", "runtime/src/partition/actor.rs"),
        ("rocksdb::", "runtime/src/store/rocks"),
        ("axum::", "runtime/src/http"),
        ("hyper::", "runtime/src/http runtime/src/transport/http.rs"),
        ("reqwest::", "runtime/src/client.rs runtime/src/transport/http.rs"),
        ("hmac::", "runtime/src/transport/http.rs"),
        ("tokio_postgres::", "runtime/src/store/postgres"),
        ("bincode::", "runtime/src/store/record.rs"),
    ];
    let mut strays = Vec::new();
    for (path, text) in sources() {
        if !path.starts_with("runtime/src") {
            continue;
        }
        for (name, home) in homes {
            let mut homes = home.split(' ');
            if text.contains(name) && !homes.any(|home| path.starts_with(home)) {
                strays.push(format!("{name} in {}", path.display()));
            }
        }
    }
    assert!(strays.is_empty(), "{strays:#?}");
}

fn text_of(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    fs::read_to_string(root.join(name)).expect("readable")
}

/// The names of the functions that a file gives to others of its folder.
fn offered(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim_start);
    let starts = lines.filter_map(|line| line.strip_prefix("pub(super) fn "));
    starts.filter_map(|rest| rest.split(['(', '<']).next())
}

/// The layers of the runtime: each uses only those before it. What stands in one line does not use one
/// another, but for the smallest parts in the first line.
const LAYERS: [&[&str]; 12] = [
    &[
        "clock",
        "config",
        "entropy",
        "errors",
        "escape",
        "guard",
        "lease",
        "listen",
        "map",
        "rules",
        "sabotage",
        "telemetry",
        "threads",
    ],
    &["memory"],
    &["admission", "client"],
    &["store"],
    &["types"],
    &["partition"],
    &["commit", "transport"],
    &["host"],
    &["placement"],
    &["node"],
    &["http", "testing"],
    &["server"],
];

/// The layer of a part of the runtime.
fn layer(part: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&part))
}

/// The parts of the crate that a file names, outside of its tests: `crate::a`, and each `b` of
/// `crate::{a::.., b, ..}`.
fn named_parts(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut named = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            named.push(first_word(rest));
            continue;
        };
        let mut depth = 1;
        let mut start = true;
        for (at, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => start = true,
                letter if start && letter.is_alphabetic() => {
                    named.push(first_word(&list[at..]));
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    named
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

#[test]
fn no_layer_uses_one_above_it() {
    // What is re-exported at the root, by where it comes from.
    let roots = [
        ("Change", "node"),
        ("ChangeEvent", "node"),
        ("Changes", "node"),
        ("Client", "client"),
        ("Config", "config"),
        ("Fatal", "commit"),
        ("Listen", "listen"),
        ("MemoryDivision", "memory"),
        ("DeadLetterFilter", "store"),
        ("DeadLetterView", "node"),
        ("Deletion", "node"),
        ("Node", "node"),
        ("NodeBuilder", "node"),
        ("PostgresStore", "store"),
        ("RocksStore", "store"),
        ("Server", "http"),
        ("ServerSettings", "http"),
        ("StartError", "node"),
        ("StateView", "partition"),
        ("TypeChange", "node"),
        ("TypeChangeEvent", "node"),
        ("UpgradeView", "node"),
        ("VersionsView", "node"),
    ];
    let mut back = Vec::new();
    for (path, text) in sources() {
        let Ok(path) = path.strip_prefix("runtime/src") else { continue };
        let part = path.components().next().expect("a part").as_os_str().to_string_lossy();
        let part = part.trim_end_matches(".rs");
        if ["lib", "main", "docs"].contains(&part)
            || path.ends_with("tests.rs")
            || path.components().any(|it| it.as_os_str() == "tests")
        {
            continue;
        }
        let own = layer(part).unwrap_or_else(|| panic!("{part} is in no layer"));
        for name in named_parts(&text) {
            let name = roots.iter().find(|(root, _)| *root == name).map_or(&*name, |(_, of)| of);
            let other = layer(name).unwrap_or_else(|| panic!("{name} in {part} is in no layer"));
            let is_fine = other < own || name == part || own == 0 && other == 0;
            if !is_fine {
                back.push(format!("{} uses {name}", path.display()));
            }
        }
    }
    assert!(back.is_empty(), "{back:#?}");
}

#[test]
fn what_a_node_offers_stands_in_one_place() {
    let mut places = Vec::new();
    for (path, text) in sources() {
        if path.starts_with("runtime/src") && text.contains("\nimpl Node {") {
            places.push(path.display().to_string());
        }
    }
    places.sort();
    // The router is an axum type, whose home is `http`.
    assert_eq!(places, ["runtime/src/http/mod.rs", "runtime/src/node/mod.rs"]);
}

#[test]
fn a_partition_is_parts_and_layers_that_use_only_those_before_them() {
    let file = |name: &str| text_of(&format!("runtime/src/partition/{name}.rs"));
    let layers = ["persist", "intake", "unusable", "deletion", "settle", "run"];
    for (place, name) in layers.iter().enumerate() {
        let text = file(name);
        for above in &layers[place + 1..] {
            let theirs = file(above);
            let back = offered(&theirs).find(|it| text.contains(&format!("self.{it}(")));
            assert_eq!(back, None, "{name} uses {above}");
        }
    }
    let parts = [
        "activations/mod",
        "activations/activation",
        "attempts",
        "dead_letters",
        "environment",
        "idempotency",
        "inbox",
        "lifecycle",
        "links",
        "reminders",
        "write_group",
    ];
    for part in parts {
        let text = file(part);
        let code = text.split("mod tests {").next().unwrap_or_default();
        let mut lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        assert!(!lines.any(|line| line.contains("Partition")), "{part} knows the partition");
    }
    let whole = file("mod");
    let fields = whole.split("pub(crate) struct Partition {").nth(1).expect("the partition");
    let fields = fields.split("\n}").next().unwrap_or_default();
    let count = fields.lines().filter(|line| line.trim_end().ends_with(',')).count();
    assert!((1..=12).contains(&count) && !fields.contains("pub"), "{count} fields");
}

#[test]
fn nothing_is_ignored_or_left_open() {
    // Spelled in two parts, so that this file does not find itself.
    let marks = [["#[ig", "nore"], ["to", "do!("], ["FIX", "ME"], ["unimple", "mented!("]];
    let marks: Vec<String> = marks.iter().map(|parts| parts.concat()).collect();
    for (path, text) in sources() {
        for mark in &marks {
            assert!(!text.contains(mark), "{mark} in {}", path.display());
        }
    }
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let text = fs::read_to_string(root.join("runtime/src/docs/invariants.md")).expect("readable");
    let all: String = sources().into_iter().map(|(_, text)| text).collect();
    let mut named = 0;
    for line in text.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let tests = line.rsplit('|').nth(1).unwrap_or_default();
        for name in tests.split('`').skip(1).step_by(2) {
            let name = name.rsplit("::").next().unwrap_or_default();
            let exists = ["(", "<"].iter().any(|end| all.contains(&format!("fn {name}{end}")));
            assert!(exists, "{name} does not exist");
            named += 1;
        }
    }
    assert!(named > 20);
}

#[test]
fn words_that_were_given_up_do_not_come_back() {
    // The field's word stands behind each; where two are named, either is meant.
    let given_up = [
        ("burst", "write group"),
        ("ticket", "reply sender"),
        ("patience", "timeout"),
        ("surroundings", "environment"),
        ("queued item", "envelope"),
        ("bury", "dead-letter"),
        ("buried", "dead-lettered"),
        ("exhume", "delete"),
        ("doom", "decode error"),
        ("doomed", "undeliverable"),
        ("settle in", "begin"),
        ("move out", "end"),
        ("rouse", "resume"),
        ("doze", "park"),
        ("tend", "maintain"),
        ("let out", "release"),
        ("spin", "block"),
        ("spins", "blocks"),
        ("spinning", "blocked"),
        ("deaf", "faulty network"),
        ("mute", "faulty network"),
        ("desk", "peer service"),
        ("home of the node", "session"),
    ];
    let mut documents = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    for folder in ["", "runtime/src/docs", "entities/src/docs", "examples/permits"] {
        for entry in fs::read_dir(root.join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let is_meant = path.extension().is_some_and(|it| it == "md")
                && path.file_name().is_some_and(|it| it != "CHANGELOG.md");
            if is_meant {
                documents.push((path.clone(), fs::read_to_string(path).expect("readable")));
            }
        }
    }
    let mut found = Vec::new();
    for (path, text) in sources().into_iter().chain(documents) {
        if path.ends_with("tidy.rs") {
            continue;
        }
        // The old spelling of a flag is still taken, and the standard library has its own words.
        let text = text.replace("alias = \"spin-limit\"", "").replace("spin_loop", "");
        let text = text.to_lowercase();
        let words = text.split(|letter: char| !letter.is_alphanumeric() && letter != ' ');
        for words in words.filter(|words| !words.is_empty()) {
            let words = format!(" {words} ");
            let bad = given_up.iter().find(|(word, _)| words.contains(&format!(" {word} ")));
            found.extend(
                bad.map(|(word, now)| {
                    format!("{}: {word:?}, which is {now:?} now", path.display())
                }),
            );
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Where tests sleep, how often, and why nothing could be waited for instead.
const SLEEPS: [(&str, usize, &str); 33] = [
    ("unruly.rs", 1, "durable time of a workflow"),
    (
        "src/workflows.rs",
        5,
        "how long steps take, paces of clients, and nothing must begin meanwhile",
    ),
    ("src/wait.rs", 1, "asks again for what nobody tells of"),
    ("src/proxy.rs", 1, "what was held passes later"),
    ("tests/crash.rs", 3, "the moments of kills"),
    ("tests/cluster/clocks.rs", 1, "nobody must be evicted meanwhile"),
    ("tests/cluster/refusals.rs", 1, "a lease has to run out behind a cut"),
    ("tests/cluster/run.rs", 4, "the moments of faults, requests and looks"),
    ("tests/cluster/wrong.rs", 4, "how long faults last"),
    ("tests/cluster/workflows.rs", 2, "paces requests and looks"),
    ("tests/http/disk.rs", 1, "paces what fills a disk"),
    ("tests/http/memory.rs", 3, "how long it is overloaded, and waits of refused callers"),
    ("tests/http/places.rs", 1, "the moment of a stop"),
    ("tests/http/refusals.rs", 1, "a client that crawls"),
    ("tests/http/waiting.rs", 2, "paces replays that are withdrawn at their deadlines"),
    ("tests/semantics/changes.rs", 4, "nothing must be shown meanwhile, and virtual time"),
    ("tests/semantics/collections.rs", 3, "virtual time"),
    ("tests/semantics/indexing.rs", 4, "virtual time"),
    ("tests/semantics/instances.rs", 5, "nothing must be told meanwhile, and durable time"),
    ("tests/semantics/keys.rs", 1, "callers arrive while a flush is held"),
    ("tests/semantics/kit.rs", 2, "virtual time"),
    ("tests/semantics/limits.rs", 3, "callers arrive while an operation hangs"),
    ("tests/semantics/policies.rs", 2, "operations that take long"),
    ("tests/semantics/reminders.rs", 2, "nothing must be applied meanwhile"),
    ("tests/semantics/sections.rs", 1, "a timer of a workflow, in virtual time"),
    ("tests/semantics/turns.rs", 3, "nothing must be answered meanwhile"),
    ("tests/semantics/type_changes.rs", 8, "virtual time"),
    ("tests/semantics/workflows.rs", 6, "virtual time, and a step must not begin meanwhile"),
    ("tests/simulation/run.rs", 15, "virtual time"),
    ("tests/simulation/workflows.rs", 1, "virtual time"),
    ("tests/store/backups.rs", 1, "references are dropped later"),
    ("tests/store/main.rs", 1, "paces batches, between which files are written"),
    ("tests/store/postgres.rs", 1, "a commit that is on its way has to arrive"),
];

#[test]
fn tests_wait_for_events() {
    for (path, text) in sources() {
        let Ok(path) = path.strip_prefix("tests") else { continue };
        let sleeps = text.matches("sleep(").count();
        let name = path.to_string_lossy();
        let allowed = SLEEPS.iter().find(|(of, ..)| *of == name).map_or(0, |(_, count, _)| *count);
        let is_this = path.ends_with("tidy.rs");
        assert!(is_this || sleeps <= allowed, "{name} sleeps {sleeps} times; use `wait::until`");
    }
}

#[test]
fn every_sabotage_breaks_an_invariant_and_is_used() {
    let invariants = text_of("runtime/src/docs/invariants.md");
    let all: String = sources().into_iter().map(|(_, text)| text).collect();
    let list = text_of("entities/src/sabotage.rs");
    let list = list.split("sabotages! {").nth(1).expect("the list");
    let mut listed = 0;
    for line in list.lines().filter(|line| line.trim_start().starts_with('X')) {
        let words: Vec<_> = line.split([' ', ':']).filter(|word| !word.is_empty()).collect();
        let [_, name, "breaks", row, ..] = words[..] else { panic!("{line}") };
        assert!(invariants.contains(&format!("\n| {row} | ")), "{name} breaks nothing");
        assert!(all.contains(&format!("Sabotage::{name}.is_on()")), "{name} is not used");
        listed += 1;
    }
    assert!(listed > 20);
}

#[test]
fn the_readme_is_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let readme = fs::read_to_string(root.join("README.md")).expect("readable");
    assert!(readme.lines().count() <= 150);
}

#[test]
fn doc_comments_begin_with_what_an_item_is_or_does() {
    let riddles = ["What ", "Who ", "Whose ", "That ", "Where "];
    let mut found = Vec::new();
    for (path, text) in sources() {
        // Help texts speak to an operator; tests tell of what happens.
        let is_test =
            path.components().any(|it| it.as_os_str() == "tests") || path.ends_with("tests.rs");
        if is_test || path.ends_with("server/flags/mod.rs") {
            continue;
        }
        let mut before = "";
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            let doc = line.strip_prefix("/// ").or_else(|| line.strip_prefix("//! "));
            let is_first = !before.starts_with("///") && !before.starts_with("//!");
            if let Some(doc) = doc.filter(|_| is_first)
                && riddles.iter().any(|word| doc.starts_with(word))
            {
                found.push(format!("{}:{number} {doc}", path.display()));
            }
            before = line;
        }
    }
    assert!(found.is_empty(), "begin with a noun or a verb: {found:#?}");
}
