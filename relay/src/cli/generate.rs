//! `relay generate`: what a package has beside the program, made from the command line itself.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;

/// Of commands for administrators (man(1)).
const SECTION: &str = "8";
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Fish, Shell::Zsh];

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Folder for them, which is made.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl Arguments {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let writing = || format!("write into {}", self.folder.display());
        let (man, completions) = (self.folder.join("man"), self.folder.join("completions"));
        std::fs::create_dir_all(&man).with_context(writing)?;
        std::fs::create_dir_all(&completions).with_context(writing)?;
        let mut whole = Cli::command().disable_help_subcommand(true);
        for shell in SHELLS {
            clap_complete::generate_to(shell, &mut whole, "relay", &completions)
                .with_context(writing)?;
        }
        whole.build();
        pages(&whole, &man).with_context(writing)
    }
}

/// A page for the command, and one for each below it.
fn pages(command: &Command, folder: &Path) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below, folder)?;
    }
    let source = format!("Millrace {}", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command.clone()).section(SECTION).source(source).manual("Millrace");
    page.generate_to(folder).map(drop)
}
