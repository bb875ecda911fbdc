"""Who lives in the image: scenes drawn from priors, rendered by the physics core."""
