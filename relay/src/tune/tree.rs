//! The tree of files: its folders, and in each the settings of it and the reason of the last refusal.

use std::collections::HashMap;

/// In every folder that has settings.
const LAST_ERROR: &str = "last_error";

/// A file or a folder, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) usize);

/// The folder that has all others.
pub(super) const ROOT: NodeId = NodeId(0);

/// What one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A folder: what is in it, by name.
    Folder(Vec<(String, NodeId)>),
    /// The value of a setting.
    Setting {
        /// Its path.
        path: String,
        /// Whether it can be written.
        is_live: bool,
    },
    /// Why the last write in its folder was refused.
    LastError,
}

/// All of them. The tree stays as it is for as long as the relay runs.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    parents: Vec<NodeId>,
}

impl Tree {
    /// That of some settings: their paths, and whether each can be written.
    pub(super) fn new<'a>(settings: impl IntoIterator<Item = (&'a str, bool)>) -> Self {
        let mut tree = Self { nodes: vec![Node::Folder(Vec::new())], parents: vec![ROOT] };
        let mut folders = HashMap::from([(String::new(), ROOT)]);
        for (path, is_live) in settings {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = tree.folder(folder, &mut folders);
            if tree.child(parent, LAST_ERROR).is_none() {
                tree.add(parent, LAST_ERROR, Node::LastError);
            }
            let path = path.to_owned();
            tree.add(parent, name, Node::Setting { path, is_live });
        }
        tree
    }

    fn folder(&mut self, path: &str, known: &mut HashMap<String, NodeId>) -> NodeId {
        if let Some(folder) = known.get(path) {
            return *folder;
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.folder(above, known);
        let folder = self.add(parent, name, Node::Folder(Vec::new()));
        known.insert(path.to_owned(), folder);
        folder
    }

    fn add(&mut self, parent: NodeId, name: &str, node: Node) -> NodeId {
        let id = NodeId(self.nodes.len());
        self.nodes.push(node);
        self.parents.push(parent);
        let Node::Folder(children) = &mut self.nodes[parent.0] else {
            unreachable!("only folders have something in them")
        };
        children.push((name.to_owned(), id));
        id
    }

    /// What has that number.
    pub(super) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0)
    }

    /// The folder that it is in.
    pub(super) fn parent(&self, id: NodeId) -> NodeId {
        self.parents.get(id.0).copied().unwrap_or(ROOT)
    }

    /// What is in a folder under that name.
    pub(super) fn child(&self, folder: NodeId, name: &str) -> Option<NodeId> {
        let Some(Node::Folder(children)) = self.node(folder) else { return None };
        children.iter().find(|(own, _)| own == name).map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_its_setting_and_each_folder_has_its_last_error() {
        let paths =
            [("relay/id", false), ("service/a/accept", true), ("service/a/tcp/probes", true)];
        let tree = Tree::new(paths);
        for (path, is_live) in paths {
            let mut at = ROOT;
            for part in path.split('/') {
                let next = tree.child(at, part).expect(path);
                assert_eq!(tree.parent(next), at);
                at = next;
            }
            assert_eq!(tree.node(at), Some(&Node::Setting { path: path.to_owned(), is_live }));
            let error = tree.child(tree.parent(at), LAST_ERROR).expect("beside it");
            assert_eq!(tree.node(error), Some(&Node::LastError));
        }
        assert_eq!(tree.child(ROOT, LAST_ERROR), None, "there is no setting in it");
        assert_eq!(tree.child(tree.child(ROOT, "relay").unwrap(), "weather"), None);
        assert_eq!(tree.node(NodeId(1000)), None);
    }
}
