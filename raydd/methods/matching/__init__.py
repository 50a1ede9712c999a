"""What DM, DC and DSA share: classes whose images are matched to real ones, and gradients of networks."""
