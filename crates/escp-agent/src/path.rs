//! Where an entry lies, for messages; and names of single components.

use std::sync::Arc;

/// A path as a chain of components, so that a deep tree shares what its entries have in common.
#[derive(Debug)]
pub(crate) struct PathNode {
    parent: Option<Arc<PathNode>>,
    name: Vec<u8>,
}

impl PathNode {
    /// A path as the user wrote it.
    pub(crate) fn root(path: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { parent: None, name: path })
    }

    /// `name` in `parent`.
    pub(crate) fn child(parent: &Arc<Self>, name: &[u8]) -> Arc<Self> {
        Arc::new(Self { parent: Some(Arc::clone(parent)), name: name.to_vec() })
    }

    /// The whole path.
    pub(crate) fn path(&self) -> Vec<u8> {
        let mut parts = vec![self.name.as_slice()];
        let mut at = self;
        while let Some(parent) = &at.parent {
            parts.push(parent.name.as_slice());
            at = parent;
        }
        let mut path = Vec::new();
        for part in parts.into_iter().rev().filter(|part| !part.is_empty()) {
            if !path.is_empty() && !path.ends_with(b"/") {
                path.push(b'/');
            }
            path.extend_from_slice(part);
        }
        path
    }
}

/// Splits a path into what comes before its last component, and that component without slashes behind it.
/// The last component of `/` is `/`, that of an empty path is empty; as basename(3) has it.
pub(crate) fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(path.len().min(1), |last| last + 1);
    let trimmed = path.get(..end).unwrap_or_default();
    if trimmed == b"/" {
        return (trimmed, trimmed);
    }
    match trimmed.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => trimmed.split_at(slash + 1),
        None => (b"", trimmed),
    }
}

/// The name an entry gets from its source: the last component, or nothing where scp copies into the target
/// itself (`.`, `..`, `/`).
pub(crate) fn base_name(path: &[u8]) -> &[u8] {
    match split_last(path).1 {
        b"." | b".." | b"/" => b"",
        name => name,
    }
}

/// Whether `name` may be created: one component that names something in its directory, 1 to 255 bytes.
pub(crate) fn is_component(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= escp_proto::agent::MAX_NAME
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_last_component() {
        let cases: [(&[u8], &[u8]); 12] = [
            (b"a", b"a"),
            (b"a/b", b"b"),
            (b"/a/b//", b"b"),
            (b"a/", b"a"),
            (b"/", b""),
            (b"//", b""),
            (b".", b""),
            (b"a/.", b""),
            (b"a/..", b""),
            (b"..", b""),
            (b"...", b"..."),
            (b"", b""),
        ];
        for (path, name) in cases {
            assert_eq!(base_name(path), name, "{}", path.escape_ascii());
        }
        assert_eq!(split_last(b"/a"), (&b"/"[..], &b"a"[..]));
        assert_eq!(split_last(b"a/b/"), (&b"a/"[..], &b"b"[..]));
    }

    #[test]
    fn paths_join_without_doubled_slashes() {
        let root = PathNode::root(b"dir/".to_vec());
        let deeper = PathNode::child(&PathNode::child(&root, b"a"), b"b");
        assert_eq!(deeper.path(), b"dir/a/b");
        assert_eq!(PathNode::child(&PathNode::root(b"/".to_vec()), b"a").path(), b"/a");
    }

    #[test]
    fn only_single_components_may_be_created() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", &[b'x'; 256]] {
            assert!(!is_component(bad), "{}", bad.escape_ascii());
        }
        for good in [&b"a"[..], b"...", b"-rf", b"a\nb", b"\xff", &[b'x'; 255]] {
            assert!(is_component(good), "{}", good.escape_ascii());
        }
    }
}
