"""Code that runs the inner loops of meshes."""
