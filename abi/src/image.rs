//! The read-only root image.
