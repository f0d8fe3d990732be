"""The router process: its doors, who may pass, the routing table at work, the admin socket, its peers on the same port."""
