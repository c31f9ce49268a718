//! One crate's modules: which items each file defines, and which paths it writes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{Attribute, Item, UseTree};

/// A module's path from the crate's root: empty for the root itself.
pub(crate) type ModulePath = Vec<String>;

/// One module: a file of its own, or a block in one.
#[derive(Debug, Default)]
pub(crate) struct Module {
    /// The file that it stands in, from the crate's source folder.
    pub(crate) file: PathBuf,
    /// Names defined here.
    pub(crate) items: Vec<String>,
    /// Names that `use` brings in, with the path that each stands for; `*` for a glob.
    pub(crate) uses: Vec<(String, Vec<String>)>,
    /// Paths of two segments or more anywhere else in its items.
    pub(crate) paths: Vec<Vec<String>>,
}

/// All modules of a crate, without what only its tests are built from.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) modules: BTreeMap<ModulePath, Module>,
}

impl Source {
    /// Reads a crate from its `lib.rs`. `text` gives what a file holds, if there is one; paths are from
    /// the crate's source folder.
    pub(crate) fn read(text: &dyn Fn(&Path) -> Option<String>) -> Result<Self> {
        let mut source = Self::default();
        source.read_file(text, Path::new("lib.rs"), Vec::new())?;
        Ok(source)
    }

    fn read_file(
        &mut self,
        text: &dyn Fn(&Path) -> Option<String>,
        file: &Path,
        module: ModulePath,
    ) -> Result<()> {
        let content = text(file).with_context(|| format!("cannot read {}", file.display()))?;
        let parsed = syn::parse_file(&content).with_context(|| format!("{}", file.display()))?;
        self.read_items(text, file, module, parsed.items)
    }

    fn read_items(
        &mut self,
        text: &dyn Fn(&Path) -> Option<String>,
        file: &Path,
        module: ModulePath,
        items: Vec<Item>,
    ) -> Result<()> {
        let mut this = Module { file: file.to_path_buf(), ..Module::default() };
        for item in items {
            if is_test(attributes(&item)) {
                continue;
            }
            match item {
                Item::Mod(child) => {
                    let mut path = module.clone();
                    path.push(child.ident.to_string());
                    if let Some((_, items)) = child.content {
                        self.read_items(text, file, path, items)?;
                    } else {
                        let mut child: PathBuf = path.iter().collect();
                        child.set_extension("rs");
                        if text(&child).is_none() {
                            child = path.iter().collect::<PathBuf>().join("mod.rs");
                        }
                        self.read_file(text, &child, path)?;
                    }
                }
                Item::Use(item) => flatten(&item.tree, &mut Vec::new(), &mut this.uses),
                item => {
                    let tokens = item.to_token_stream();
                    this.items.extend(names(&item, &tokens));
                    collect_paths(tokens, &mut this.paths);
                }
            }
        }
        self.modules.insert(module, this);
        Ok(())
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Built for tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.meta.to_token_stream().to_string().replace(' ', "") == "cfg(test)"
    })
}

/// The names that an item defines. Of a macro's call: of each `enum`, `struct`, `fn` or `type` in it.
fn names(item: &Item, tokens: &TokenStream) -> Vec<String> {
    let one = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Macro(item) => match &item.ident {
            Some(ident) => ident,
            None => return defined_in(tokens.clone()),
        },
        _ => return Vec::new(),
    };
    vec![one.to_string()]
}

fn defined_in(tokens: TokenStream) -> Vec<String> {
    let mut found = Vec::new();
    let mut before = String::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) => found.extend(defined_in(group.stream())),
            TokenTree::Ident(ident) => {
                if ["enum", "struct", "fn", "type", "const", "static"].contains(&before.as_str()) {
                    found.push(ident.to_string());
                }
                before = ident.to_string();
                continue;
            }
            _ => {}
        }
        before.clear();
    }
    found
}

fn flatten(tree: &UseTree, before: &mut Vec<String>, into: &mut Vec<(String, Vec<String>)>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, into);
            before.pop();
        }
        UseTree::Name(name) => {
            let mut path = before.clone();
            if name.ident != "self" {
                path.push(name.ident.to_string());
            }
            let last = path.last().cloned().unwrap_or_default();
            into.push((last, path));
        }
        UseTree::Rename(rename) => {
            let mut path = before.clone();
            if rename.ident != "self" {
                path.push(rename.ident.to_string());
            }
            into.push((rename.rename.to_string(), path));
        }
        UseTree::Glob(_) => into.push(("*".to_owned(), before.clone())),
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, before, into);
            }
        }
    }
}

/// Runs of `a::b::c`, in macros' arguments too, where nothing but tokens is to be had.
fn collect_paths(tokens: TokenStream, into: &mut Vec<Vec<String>>) {
    let mut path: Vec<String> = Vec::new();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                if colons != 2 {
                    finish(&mut path, into);
                }
                path.push(ident.to_string());
                colons = 0;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            other => {
                finish(&mut path, into);
                colons = 0;
                if let TokenTree::Group(group) = other {
                    collect_paths(group.stream(), into);
                }
            }
        }
    }
    finish(&mut path, into);
}

fn finish(path: &mut Vec<String>, into: &mut Vec<Vec<String>>) {
    if path.len() > 1 {
        into.push(std::mem::take(path));
    } else {
        path.clear();
    }
}
