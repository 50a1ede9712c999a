"""Where images start from: noise, real images, patches, folders."""
