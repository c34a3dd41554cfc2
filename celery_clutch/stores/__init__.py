"""Result stores: the interface and the two that come with celery-clutch."""
