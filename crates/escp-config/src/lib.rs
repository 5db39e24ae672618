//! The strict YAML configuration of escp and escpd.
