//! Which module of the relay may import from which: the list of floors in ARCHITECTURE.md is kept.
//!
//! A module imports from lower floors only, and no files import from each other in a circle. What is built
//! for tests alone does not count.

mod graph;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use graph::{Imports, circles, imports};
use source::Source;

/// The list of floors stands behind this line, from the ground up, modules of one floor separated by
/// spaces.
const LIST: &str = "```floors\n";

/// Which floor each top-level module is on, from 0.
fn floors(architecture: &str) -> Result<BTreeMap<String, usize>> {
    let (_, list) =
        architecture.split_once(LIST).context("ARCHITECTURE.md has no list of floors")?;
    let (list, _) = list.split_once("```").context("the list of floors does not end")?;
    let mut floors = BTreeMap::new();
    for (floor, line) in list.lines().enumerate() {
        for module in line.split_whitespace() {
            if floors.insert(module.to_owned(), floor).is_some() {
                bail!("`{module}` is on two floors");
            }
        }
    }
    Ok(floors)
}

/// The top-level module of a file.
fn top(file: &Path) -> String {
    let first = file.iter().next().unwrap_or_default().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// What breaks the rule, a line each.
fn breaches(imports: &Imports, floors: &BTreeMap<String, usize>) -> Vec<String> {
    let mut breaches = Vec::new();
    for (file, from) in imports.iter().filter(|(file, _)| *file != Path::new("lib.rs")) {
        let module = top(file);
        let Some(floor) = floors.get(&module) else {
            breaches.push(format!("{}: `{module}` is on no floor", file.display()));
            continue;
        };
        for (other, name) in from {
            let other_module = top(other);
            let below = floors.get(&other_module).is_some_and(|other| other < floor);
            if module != other_module && !below {
                breaches.push(format!(
                    "{} imports {name}: `{other_module}` is not below `{module}`",
                    file.display()
                ));
            }
        }
    }
    breaches.extend(circles(imports).iter().map(told));
    breaches
}

fn told(circle: &BTreeSet<PathBuf>) -> String {
    let files: Vec<_> = circle.iter().map(|file| file.display().to_string()).collect();
    format!("these import from each other in a circle: {}", files.join(", "))
}

#[test]
fn the_relay_keeps_to_its_floors() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let floors = floors(&fs::read_to_string(root.join("ARCHITECTURE.md"))?)?;
    let read = |folder: &str| {
        let folder = root.join(folder);
        Source::read(&|file| fs::read_to_string(folder.join(file)).ok())
    };
    let relay = read("relay/src")?;
    for module in relay.modules.keys().filter_map(|path| path.first()) {
        assert!(floors.contains_key(module), "ARCHITECTURE.md gives `{module}` no floor");
    }
    let mut breaches = breaches(&imports(&relay), &floors);
    // These are crates, so cargo holds them to their floors.
    for below in ["relay/model/src", "relay/codec/src"] {
        breaches.extend(circles(&imports(&read(below)?)).iter().map(told));
    }
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
    Ok(())
}

#[test]
fn the_harness_keeps_to_its_floors() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let floors = floors(&fs::read_to_string(root.join("docs/design/testing.md"))?)?;
    let folder = root.join("tests/harness/src");
    let harness = Source::read(&|file| fs::read_to_string(folder.join(file)).ok())?;
    for module in harness.modules.keys().filter_map(|path| path.first()) {
        assert!(floors.contains_key(module), "testing.md gives `{module}` no floor");
    }
    let breaches = breaches(&imports(&harness), &floors);
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
    Ok(())
}

/// What breaks the rule in a crate of these files, whose floors are `low`, `middle`, `high`.
fn of(files: &[(&str, &str)]) -> Result<Vec<String>> {
    let text = |file: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == file);
        let root = || (file == Path::new("lib.rs")).then_some("mod low; mod middle; mod high;");
        let empty = ["low.rs", "middle.rs", "high.rs"].iter().any(|name| Path::new(name) == file);
        let nested = file.with_extension("").join("mod.rs");
        let is_nested = files.iter().any(|(name, _)| Path::new(name) == nested);
        let text = found.map(|(_, text)| *text).or_else(root);
        text.or_else(|| (empty && !is_nested).then_some("")).map(str::to_owned)
    };
    let floors = floors("```floors\nlow\nmiddle\nhigh\n```")?;
    Ok(breaches(&imports(&Source::read(&text)?), &floors))
}

#[test]
fn an_import_from_a_higher_floor_is_found_however_it_is_written() -> Result<()> {
    let high =
        ("high.rs", "pub struct Word; pub fn say() {} pub mod far { pub const AWAY: u8 = 0; }");
    for low in [
        "use crate::high::Word;",
        "use crate::{high::{far::AWAY as GONE}};",
        "use super::high; fn f() { high::say() }",
        "fn f() { crate::high::say() }",
        "fn f() { println!(\"{}\", crate::high::far::AWAY) }",
        "mod inner { use super::super::high::*; }",
        "type T = Option<crate::high::Word>;",
    ] {
        assert_eq!(of(&[high, ("low.rs", low)])?.len(), 1, "{low}");
    }
    // Through a re-export of a floor that may.
    let middle = ("middle.rs", "pub use crate::low::Thing;");
    let low = ("low.rs", "pub struct Thing;");
    assert_eq!(of(&[middle, low, ("high.rs", "use crate::middle::Thing;")])?, [""; 0]);
    let back = ("low.rs", "pub struct Thing; fn f(_: crate::middle::Thing) {}");
    assert_eq!(of(&[middle, back])?, [""; 0], "it names what is its own");
    Ok(())
}

#[test]
fn a_circle_is_found() -> Result<()> {
    let root = ("high/mod.rs", "mod a; mod b; mod c; pub use b::B;");
    let (a, b) =
        (("high/a.rs", "use super::B; pub struct A;"), ("high/b.rs", "pub struct B(super::c::C);"));
    let straight = ("high/c.rs", "pub struct C;");
    assert_eq!(of(&[root, a, b, straight])?, [""; 0]);
    let found = of(&[root, a, b, ("high/c.rs", "pub struct C(Box<super::a::A>);")])?;
    let circle = "these import from each other in a circle: high/a.rs, high/b.rs, high/c.rs";
    assert_eq!(found, [circle]);
    // What only tests need is no circle.
    let tests = ("high/c.rs", "pub struct C; #[cfg(test)] mod tests { use super::super::a::A; }");
    assert_eq!(of(&[root, a, b, tests])?, [""; 0]);
    Ok(())
}
