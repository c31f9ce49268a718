//! scratch
mod graph;
mod source;
use std::path::Path;
#[test]
fn show() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../relay/src");
    let source =
        source::Source::read(&|file| std::fs::read_to_string(root.join(file)).ok()).unwrap();
    let imports = graph::imports(&source);
    for (file, from) in &imports {
        for (to, name) in from {
            println!("IMP {} {} {}", file.display(), to.display(), name);
        }
    }
    for circle in graph::circles(&imports) {
        println!("CIRCLE {circle:?}");
    }
}
