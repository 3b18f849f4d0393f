//! Where a metadata node is, as configurations name it: `ID@host:port`, or `host:port` where the id is not known.

use engine::ids::NodeId;

/// A metadata node's address, and which node it is, if that is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MetaAddress {
    /// Whom a client expects there; `None`: any metadata node.
    pub node: Option<NodeId>,
    /// `host:port`.
    pub address: String,
}

impl MetaAddress {
    /// Reads `ID@host:port` or `host:port`. What stands before an `@` and is no id is left to be refused as a part of
    /// the address.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.split_once('@').map(|(node, address)| (node.parse(), address)) {
            Some((Ok(node), address)) => Self { node: Some(NodeId(node)), address: address.to_owned() },
            _ => Self { node: None, address: text.to_owned() },
        }
    }
}

impl std::fmt::Display for MetaAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.node {
            Some(node) => write!(f, "{node}@{}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_nodes_id_or_none() {
        for (text, node, address) in [
            ("3@meta3.example.org:7431", Some(NodeId(3)), "meta3.example.org:7431"),
            ("[::1]:7431", None, "[::1]:7431"),
            ("x@host:1", None, "x@host:1"),
        ] {
            let parsed = MetaAddress::parse(text);
            assert_eq!((parsed.node, parsed.address.as_str()), (node, address));
            assert_eq!(parsed.to_string(), text);
        }
    }
}
