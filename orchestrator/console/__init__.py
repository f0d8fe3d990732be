"""The page to watch rollouts on, and to steer them from: server-rendered, light, with nothing from outside."""
