"""The whole story on a pocket world: what `expunge demo` carries out."""
