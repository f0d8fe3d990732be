"""The data plane: protocol, router, batching, link, agent, replica, runtimes. Router and replica import no Ray, torch, MLflow or SQLAlchemy."""
