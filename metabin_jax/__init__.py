"""MetaBIN in JAX: generalisable person re-identification by meta-learned batch-instance normalisation."""
