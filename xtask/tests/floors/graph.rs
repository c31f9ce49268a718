//! Which file imports from which, and what is wrong with that.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use crate::source::{ModulePath, Source};

/// Files of a crate, and the files that each imports from, with one of the names for people.
pub(crate) type Imports = BTreeMap<PathBuf, BTreeMap<PathBuf, String>>;

/// How deep re-exports of re-exports may go.
const MOST_HOPS: usize = 16;

/// Follows every path to the file that defines what it names.
///
/// What a module takes from below itself is no import: it is made of that.
pub(crate) fn imports(source: &Source) -> Imports {
    let mut imports = Imports::new();
    for (path, module) in &source.modules {
        let from = imports.entry(module.file.clone()).or_default();
        let mut add = |named: &[String]| {
            if let Some(file) = source.resolve(path, named, MOST_HOPS)
                && file != module.file
                && !is_below(&file, &module.file)
            {
                from.entry(file).or_insert_with(|| named.join("::"));
            }
        };
        for (_, named) in &module.uses {
            add(named);
        }
        for named in &module.paths {
            add(named);
        }
    }
    imports
}

/// Whether a file belongs to a module below that of another file.
fn is_below(file: &Path, other: &Path) -> bool {
    let folder = match other.file_name().and_then(|name| name.to_str()) {
        Some("lib.rs") => return true,
        Some("mod.rs") => other.parent().unwrap_or(other).to_path_buf(),
        _ => other.with_extension(""),
    };
    file.starts_with(folder)
}

impl Source {
    /// The file that defines what `named` means in the module `at`; `None` for what is not of this crate.
    fn resolve(&self, at: &ModulePath, named: &[String], hops: usize) -> Option<PathBuf> {
        let hops = hops.checked_sub(1)?;
        let (mut module, rest) = match named.first()?.as_str() {
            "crate" => (Vec::new(), &named[1..]),
            "self" => (at.clone(), &named[1..]),
            "super" => {
                let mut up = at.clone();
                up.pop()?;
                let mut rest = &named[1..];
                while rest.first().is_some_and(|segment| segment == "super") {
                    up.pop()?;
                    rest = &rest[1..];
                }
                (up, rest)
            }
            first => {
                // A child, an item of this very module, or a name that `use` has brought in.
                let mut child = at.clone();
                child.push(first.to_owned());
                if self.modules.contains_key(&child) {
                    (child, &named[1..])
                } else {
                    let here = self.modules.get(at)?;
                    if here.items.iter().any(|item| item == first) {
                        return Some(here.file.clone());
                    }
                    let (_, brought) = here.uses.iter().find(|(name, _)| name == first)?;
                    if brought.first().is_some_and(|segment| segment == first) {
                        return None;
                    }
                    let full = [brought.as_slice(), &named[1..]].concat();
                    return self.resolve(at, &full, hops);
                }
            }
        };
        for (index, segment) in rest.iter().enumerate() {
            let mut child = module.clone();
            child.push(segment.clone());
            if self.modules.contains_key(&child) {
                module = child;
                continue;
            }
            let here = self.modules.get(&module)?;
            if here.items.iter().any(|item| item == segment) {
                return Some(here.file.clone());
            }
            for (name, brought) in &here.uses {
                let full = if name == segment {
                    [brought.as_slice(), &rest[index + 1..]].concat()
                } else if name == "*" {
                    [brought.as_slice(), &rest[index..]].concat()
                } else {
                    continue;
                };
                if let Some(file) = self.resolve(&module, &full, hops) {
                    return Some(file);
                }
            }
            return None;
        }
        // A module itself.
        self.modules.get(&module).map(|module| module.file.clone())
    }
}

/// Groups of files of which each imports from each, over others if need be; without those of one.
pub(crate) fn circles(imports: &Imports) -> Vec<BTreeSet<PathBuf>> {
    let reached: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> =
        imports.keys().map(|file| (file, reach(imports, file))).collect();
    let mut circles: Vec<BTreeSet<PathBuf>> = Vec::new();
    for file in imports.keys() {
        if !reached[file].contains(file) || circles.iter().any(|circle| circle.contains(file)) {
            continue;
        }
        let back = |other: &&&PathBuf| reached.get(**other).is_some_and(|all| all.contains(file));
        circles.push(reached[file].iter().filter(back).map(|file| (*file).clone()).collect());
    }
    circles
}

fn reach<'a>(imports: &'a Imports, file: &PathBuf) -> BTreeSet<&'a PathBuf> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&PathBuf> = imports[file].keys().collect();
    while let Some(file) = next.pop() {
        if reached.insert(file)
            && let Some(more) = imports.get(file)
        {
            next.extend(more.keys());
        }
    }
    reached
}
