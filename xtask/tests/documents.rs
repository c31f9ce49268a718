//! The documents name files that exist, and link to headings that exist.
//!
//! Checked are README.md, ARCHITECTURE.md, CONTRIBUTING.md and docs/**/*.md:
//!
//! - every link that is no URL, and its anchor;
//! - every word in backticks that looks like a path of this repository: it has a slash, and ends with an
//!   extension or a slash.
//!
//! A word in backticks is no path of this repository if it
//!
//! - begins with a slash, `~` or `-`, has a colon, or is below `target/`, which builds make;
//! - has a glob's or an ellipsis' character;
//! - has a part in capitals, such as `INSTANCE` in `/run/millrace/INSTANCE/`: that is a placeholder.
//!   `README.md` is none;
//! - begins with a capital, such as the kernel's `Documentation/`: no folder here does.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

const DOCUMENTS: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
const FOLDER: &str = "docs";

/// Text outside fenced blocks.
fn prose(document: &str) -> String {
    let mut fenced = false;
    let keep = |line: &&str| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    };
    document.lines().filter(keep).collect::<Vec<_>>().join("\n")
}

/// True if a word in backticks names a file or a folder of this repository.
fn is_path(word: &str) -> bool {
    let Some((folder, file)) = word.rsplit_once('/') else { return false };
    let extension = file.rsplit_once('.').map(|(_, extension)| extension);
    let ends_as_one = file.is_empty()
        || extension.is_some_and(|one| one.starts_with(|first: char| first.is_ascii_lowercase()));
    let is_elsewhere = folder.is_empty()
        || word.starts_with(['/', '~', '-'])
        || word.starts_with(|first: char| first.is_ascii_uppercase())
        || word.starts_with("target/");
    let is_pattern = word.contains([':', '*', '?', '…', '<', '{', '|', '(', '=']);
    let in_capitals = |part: &str| {
        let name = part.split('.').next().unwrap_or_default();
        let is_letter =
            |letter: char| letter.is_ascii_uppercase() || "_-0123456789".contains(letter);
        name.contains(|letter: char| letter.is_ascii_uppercase())
            && name.chars().all(is_letter)
            && name != "README"
    };
    ends_as_one && !is_elsewhere && !is_pattern && !word.split('/').any(in_capitals)
}

/// Paths in backticks, from the root of the repository.
fn paths(prose: &str) -> impl Iterator<Item = &str> {
    let in_backticks = prose.split('`').skip(1).step_by(2);
    in_backticks.flat_map(str::split_whitespace).filter(|word| is_path(word))
}

/// Where links lead that are no URLs, as they are written.
fn links(prose: &str) -> impl Iterator<Item = &str> {
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(document: &str) -> Vec<String> {
    let prose = prose(document);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let keep = |letter: &char| letter.is_alphanumeric() || " -_".contains(*letter);
        text.chars().filter(keep).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// What a document names that is not there, a line each. `read` gives the text of a file, or nothing
/// for a folder, by its path from the root of the repository.
fn missing(
    name: &Path,
    document: &str,
    read: &impl Fn(&Path) -> Option<Option<String>>,
) -> Vec<String> {
    let mut missing = Vec::new();
    let prose = prose(document);
    let mut miss = |what: String| missing.push(format!("{}: {what}", name.display()));
    for path in paths(&prose) {
        match read(Path::new(path)) {
            None => miss(format!("there is no `{path}`")),
            Some(Some(_)) if path.ends_with('/') => miss(format!("`{path}` is no folder")),
            Some(_) => {}
        }
    }
    for link in links(&prose) {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let folder = name.parent().unwrap_or(Path::new(""));
        let target = if file.is_empty() { name.to_owned() } else { normal(&folder.join(file)) };
        match read(&target) {
            None => miss(format!("the link {link} leads nowhere")),
            Some(text) if !anchor.is_empty() => {
                let there = text.is_some_and(|text| anchors(&text).iter().any(|one| one == anchor));
                if !there {
                    miss(format!("the link {link} names a heading that is not there"));
                }
            }
            Some(_) => {}
        }
    }
    missing
}

/// Without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path {
        if part == ".." {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}

fn documents(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            documents(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            into.push(path);
        }
    }
    Ok(())
}

#[test]
fn documents_name_what_is_there() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let mut files: Vec<_> = DOCUMENTS.iter().map(|name| root.join(name)).collect();
    documents(&root.join(FOLDER), &mut files)?;
    let read = |path: &Path| {
        let path = root.join(path);
        path.exists().then(|| fs::read(path).ok().map(|text| String::from_utf8_lossy(&text).into()))
    };
    let (mut found, mut wrong) = (0, Vec::new());
    for file in files {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        found += paths(&prose(&text)).count();
        wrong.extend(missing(file.strip_prefix(root)?, &text, &read));
    }
    assert!(wrong.is_empty(), "{} wrong names:\n{}", wrong.len(), wrong.join("\n"));
    assert!(found > 100, "only {found} paths were found");
    Ok(())
}

/// What is missing in a document of the folder `docs`, where a few files are there.
fn missing_in(document: &str) -> Vec<String> {
    let read = |path: &Path| match path.to_str()? {
        "docs" | "relay/src" | "relay/src/" => Some(None),
        "relay/src/lib.rs" => Some(Some(String::new())),
        "docs/b.md" => Some(Some(document.to_owned())),
        "docs/a.md" | "docs/design/README.md" => Some(Some("# A heading, `b`\n".to_owned())),
        _ => None,
    };
    missing(Path::new("docs/b.md"), document, &read)
}

#[test]
fn a_planted_wrong_name_is_found() {
    for right in [
        "`relay/src/lib.rs`, `relay/src/` and `vi relay/src/lib.rs`",
        "[a](a.md), [a](a.md#a-heading-b), [`relay/src/lib.rs`](../relay/src/lib.rs)",
        "# Here\n[here](#here) and [design](design/README.md)",
        "[elsewhere](https://example.org/x.html)",
    ] {
        assert_eq!(missing_in(right), [""; 0], "{right}");
    }
    for wrong in [
        "`relay/src/gone.rs`",
        "`relay/gone/`",
        "`relay/src/lib.rs/`",
        "`vi relay/src/gone.rs`",
        "[a](c.md)",
        "[a](a.md#another-heading)",
        "# Here\n[there](#there)",
        "[a](../relay/src/gone.rs)",
        "![a picture](gone.svg)",
        "`docs/design/README.md` and `relay/README.md`",
    ] {
        assert_eq!(missing_in(wrong).len(), 1, "{wrong}");
    }
}

#[test]
fn what_is_no_path_of_this_repository_is_left_out() {
    for word in [
        "/run/millrace/INSTANCE/gateway.json",
        "relay/src/MODULE/mod.rs",
        "docs/NAME.md",
        "target/release/relay.d",
        "relay/src/*/section.rs",
        "Documentation/networking/tproxy.rst",
        "pass/no_rule",
        "divert/…",
        "HTTP/1.1",
        "203.0.113.0/24",
        "server/ID",
        "x=a/b.c",
        "--config=docs/gone.toml",
        "~/gone.toml",
        "lib.rs",
    ] {
        assert!(!is_path(word), "{word}");
    }
}
