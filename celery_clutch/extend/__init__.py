"""Where others join in: the hooks of plugins, the settings of an app, and who observes."""
