//! Rules of the sources that neither rustfmt nor clippy checks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::paths;

const MAX_RUST_LINES: usize = 600;
/// Where `unsafe` is allowed; ARCHITECTURE.md has the same list.
const UNSAFE_ALLOWED: [&str; 4] =
    ["relay/src/uring/", "relay/src/kafka/ffi", "gateway-ebpf/", "common/src/abi.rs"];
const SKIPPED_FOLDERS: [&str; 3] = ["target", "artifacts", "__pycache__"];
const TEXT: [&str; 6] = ["rs", "toml", "md", "py", "sh", "yml"];
const UNSAFE: &str = concat!("un", "safe");
/// Split, like the word above, so that this file passes its own check.
const UNFINISHED: [&str; 4] = [
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
    concat!("FIX", "ME"),
];

/// Checks all files of the workspace, and reports every violation.
pub(crate) fn run() -> Result<()> {
    let mut files = Vec::new();
    collect(paths::root(), &mut files)?;
    let mut breaches = Vec::new();
    for file in files {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(paths::root()).unwrap_or(&file);
        check(&name.to_string_lossy(), &text, &mut breaches);
    }
    if !breaches.is_empty() {
        bail!("{} violations of the rules:\n{}", breaches.len(), breaches.join("\n"));
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        if kind.is_dir() && !name.starts_with('.') && !SKIPPED_FOLDERS.contains(&name.as_str()) {
            collect(&entry.path(), files)?;
        } else if kind.is_file()
            && Path::new(&name)
                .extension()
                .is_some_and(|extension| TEXT.iter().any(|known| extension == *known))
        {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn check(name: &str, text: &str, breaches: &mut Vec<String>) {
    let is_rust = Path::new(name).extension().is_some_and(|extension| extension == "rs");
    let may_be_unsafe = UNSAFE_ALLOWED.iter().any(|allowed| name.starts_with(allowed));
    let mut breach = |line: usize, what: &str| breaches.push(format!("{name}:{line}: {what}"));

    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.ends_with([' ', '\t']) {
            breach(number, "white space at the end of the line");
        }
        if !is_rust {
            continue;
        }
        let code = line.split("//").next().unwrap_or_default();
        if !may_be_unsafe && has_word(code, UNSAFE) {
            breach(
                number,
                concat!("un", "safe code outside the places that ARCHITECTURE.md allows"),
            );
        }
        if UNFINISHED.iter().any(|mark| line.contains(mark)) {
            breach(number, "unfinished");
        }
    }
    if is_rust && text.lines().count() > MAX_RUST_LINES {
        breach(MAX_RUST_LINES, "longer than a file may be: a concept lacks a name");
    }
    if !text.is_empty() && !text.ends_with('\n') {
        breach(text.lines().count(), "no newline at the end of the file");
    }
}

/// True if the code has this word, and not only as a part of a longer name.
fn has_word(code: &str, word: &str) -> bool {
    code.split(|character: char| !character.is_alphanumeric() && character != '_')
        .any(|part| part == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(name: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        check(name, text, &mut found);
        found
    }

    #[test]
    fn the_workspace_is_tidy() {
        run().unwrap();
    }

    #[test]
    fn unsafe_code_is_found_and_talk_of_it_is_not() {
        let block = concat!("un", "safe { x() }\n");
        assert_eq!(breaches("relay/src/worker.rs", block).len(), 1);
        assert!(breaches("relay/src/uring/ring.rs", block).is_empty());
        assert!(breaches("relay/src/worker.rs", concat!("// un", "safe\n")).is_empty());
        assert!(breaches("a.rs", concat!("#![deny(un", "safe_code)]\n")).is_empty());
    }

    #[test]
    fn long_files_and_loose_ends_are_found() {
        assert_eq!(breaches("a.rs", &"x\n".repeat(601)).len(), 1);
        assert_eq!(breaches("a.md", "x \ny").len(), 2);
        assert_eq!(breaches("a.rs", concat!("todo", "!()\n")).len(), 1);
    }
}
