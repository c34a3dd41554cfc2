"""Traces and metrics of celery-clutch's runs, with OpenTelemetry.

There is nothing to call: celery-clutch finds the plugin where this distribution is installed, and
the plugin uses the providers that the application has set. `celery_clutch_otel.processes` helps to
set one in a worker that forks.
"""
