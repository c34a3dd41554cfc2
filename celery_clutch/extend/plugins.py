"""The plugin manager, and the store of an app.

The stores that come with celery-clutch are registered the way third-party ones are.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Collection, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from ..errors import ClutchError, NoApp, NoStore, PluginError, UnknownStore
from ..stores.base import ResultStore, StoreOptions
from . import hookspecs
from .settings import REDIS_SCHEMES, Settings, quoted

StoreFactory = Callable[[str, StoreOptions], ResultStore]


_DISTRIBUTIONS = {
    "django": "celery-clutch-django",
    "mariadb": "celery-clutch-sqlalchemy",
    "mysql": "celery-clutch-sqlalchemy",
    "postgresql": "celery-clutch-sqlalchemy",
    "sqlite": "celery-clutch-sqlalchemy",
}
"""Which distribution brings the stores of a scheme that is not built in."""


class BuiltinStores:
    """``memory://`` and Redis."""

    @staticmethod
    @hookspecs.hookimpl
    def clutch_stores() -> dict[str, StoreFactory]:
        return {"memory": _memory, **dict.fromkeys(REDIS_SCHEMES, _redis)}


def _memory(url: str, options: StoreOptions) -> ResultStore:
    from ..stores.memory import MemoryStore

    return MemoryStore(url, options)


def _redis(url: str, options: StoreOptions) -> ResultStore:
    from ..stores.redis import RedisStore

    return RedisStore(url, options)


class Plugins:
    """A typed façade over ``pm.hook``."""

    def __init__(self, found: Iterable[EntryPoint] | None = None) -> None:
        """Register the built-in stores and every plugin installed.

        Args:
            found: the entry points to load instead of those installed.

        Raises:
            PluginError: naming the distribution of a plugin that cannot be loaded or registered.
        """
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._observers: dict[str, list[tuple[str, Callable[[Any], Any]]]] = {}
        self.register(BuiltinStores(), "celery-clutch")
        for point in entry_points(group=hookspecs.PROJECT) if found is None else found:
            self._load(point)

    def register(self, plugin: object, name: str) -> None:
        """Register *plugin* under *name*, by default the name of its distribution."""
        if self._manager.is_registered(plugin):
            return
        taken = self._manager.has_plugin(name)
        try:
            self._manager.register(plugin, f"{name} ({plugin!r})" if taken else name)
            self._manager.check_pending()
            self._observers.clear()
        except (ValueError, pluggy.PluginValidationError) as exc:
            raise PluginError(
                f"the celery-clutch plugin of {name} cannot be registered: {exc}"
            ) from exc

    def stores(self) -> dict[str, StoreFactory]:
        """The factory for each URL scheme.

        Raises:
            PluginError: two plugins claim one scheme, or one fails to answer.
        """
        return {scheme: factory for scheme, (factory, _) in self._owned_stores().items()}

    def observers(self, hook: str) -> list[tuple[str, Callable[[Any], Any]]]:
        """The implementations of an observer's hook, with the names of their plugins."""
        if hook not in self._observers:
            found = getattr(self._manager.hook, hook).get_hookimpls()
            self._observers[hook] = [(impl.plugin_name, _observer(impl)) for impl in found]
        return self._observers[hook]

    def open(self, settings: Settings) -> ResultStore:
        """The store that *settings* ask for.

        Raises:
            UnknownStore: no plugin brings the scheme of the URL.
            MissingExtra: the store's client library is not installed.
            PluginError: what the plugin makes is no store, or it fails to make one.
        """
        scheme = settings.store.partition("://")[0]
        stores = self._owned_stores()
        if scheme not in stores:
            raise _unknown(scheme, stores)
        factory, owner = stores[scheme]
        options = StoreOptions(
            settings.key_prefix, settings.ttl, settings.result_ttl, settings.failed_ttl
        )
        try:
            store = factory(settings.store, options)
        except ClutchError:
            raise
        except Exception as exc:
            raise PluginError(f"{owner} cannot open {scheme}://: {exc!r}") from exc
        if not isinstance(store, ResultStore):
            raise PluginError(f"{owner} opened {scheme}:// and gave {store!r}, which is no store")
        return store

    def _owned_stores(self) -> dict[str, tuple[StoreFactory, str]]:
        """The factory for each scheme, and who brings it."""
        stores: dict[str, tuple[StoreFactory, str]] = {}
        # In the order of registration: built-ins first, so that a clash names the newcomer.
        for hook in self._manager.hook.clutch_stores.get_hookimpls():
            name = hook.plugin_name
            try:
                brought = _checked(hook.function())
            except Exception as exc:
                raise PluginError(f"the celery-clutch plugin of {name} is broken: {exc!r}") from exc
            for scheme, factory in brought.items():
                if scheme in stores:
                    raise PluginError(
                        f"the celery-clutch plugin of {name} claims the store scheme {scheme}://, "
                        f"which {stores[scheme][1]} has already; uninstall one of them"
                    )
                stores[scheme] = factory, name
        return stores

    def _load(self, point: EntryPoint) -> None:
        name = point.dist.name if point.dist else point.name
        try:
            plugin = point.load()
        except Exception as exc:
            raise PluginError(
                f"the celery-clutch plugin of {name} ({point.value}) cannot be imported: {exc!r}. "
                "Repair or uninstall it."
            ) from exc
        self.register(plugin, name)


def _unknown(scheme: str, stores: Collection[str]) -> UnknownStore:
    """Says where a store for *scheme* may come from."""
    dialect = scheme.partition("+")[0]
    package = _DISTRIBUTIONS.get(dialect)
    # Else the plugin is there, and knows no such driver.
    if package is not None and dialect not in stores:
        return UnknownStore(
            f"no store is registered for {scheme}://: it comes with {package}, which is not "
            f"installed in this environment. pip install {package}"
        )
    known = sorted({*stores, *_DISTRIBUTIONS})
    close = difflib.get_close_matches(scheme, known, n=1)
    meant = f" Is it {close[0]}:// that is meant?" if close else ""
    listed = ", ".join(f"{each}://" for each in sorted(stores))
    return UnknownStore(
        f"no store is registered for {scheme}://.{meant} Known are {listed}; others come with "
        "plugins (is the plugin installed in this environment?)"
    )


def _observer(impl: Any) -> Callable[[Any], Any]:
    function: Callable[..., Any] = impl.function
    # pluggy lets implementations leave out what they do not need.
    return function if impl.argnames else lambda event: function()


def _checked(brought: Any) -> dict[str, StoreFactory]:
    for scheme, factory in dict(brought).items():
        if not isinstance(scheme, str) or not callable(factory):
            raise TypeError(f"{scheme!r}: {factory!r} is not a URL scheme and a factory")
    return dict(brought)


class Runtime:
    """What an app has of celery-clutch in this process: its settings, plugins and store.

    ``leased_by`` is the process that the store has been told of as an owner of leases, ``direct``
    what makes messages that the store sends (`compile.direct`), once somebody has asked for it.
    """

    def __init__(self, app: Any, settings: Settings, plugins: Plugins) -> None:
        self.app = app
        self.settings = settings
        self.plugins = plugins
        try:
            self.store = plugins.open(settings)
        except ClutchError as exc:
            text = quoted(app.conf, exc)
            if text is None:
                raise
            raise type(exc)(text) from None
        self.leased_by = 0
        self.direct: Any = None


class _Cached:
    """The runtime of an app, and the settings that it was made with."""

    def __init__(self, app: Any, before: _Cached | None) -> None:
        conf = app.conf
        self.conf = conf
        self.defaults = len(conf.maps)
        self.changes = dict(conf.changes)
        self.key = conf.get("clutch_store"), conf.get("task_always_eager")
        if before is not None and before.key == self.key:
            self.runtime: Runtime = before.runtime
        else:
            self.runtime = Runtime(app, _settings(app), Plugins())

    def is_current(self, app: Any) -> bool:
        """Whether no setting has changed: to look at two of them takes Celery ten times as long."""
        conf = app.conf
        same = conf is self.conf and len(conf.maps) == self.defaults
        return bool(same and conf.changes == self.changes)


_ATTRIBUTE = "_celery_clutch"
_making = threading.Lock()


def runtime(app: Any) -> Runtime:
    """The runtime of *app*, made on first use and again when ``clutch_store`` has changed.

    Raises:
        ConfigurationError: there is no app or no store, it is unknown, or a plugin is broken.
    """
    cached: _Cached | None = app.__dict__.get(_ATTRIBUTE)
    if cached is None or not cached.is_current(app):
        with _making:  # threads of one process must share one memory store
            cached = app.__dict__.get(_ATTRIBUTE)
            if cached is None or not cached.is_current(app):
                cached = _Cached(app, cached)
                app.__dict__[_ATTRIBUTE] = cached
    return cached.runtime


def _settings(app: Any) -> Settings:
    try:
        return Settings.of(app.conf)
    except NoStore:
        # What Celery makes where no app is current, and nothing configures.
        if app.main == "default" and app.loader_cls == "default":
            raise NoApp(
                "there is no Celery app here but the one that Celery falls back to: import the "
                "module that makes yours first, or pass app= (on the command line: celery -A)"
            ) from None
        raise


def forget_runtime(app: Any) -> None:
    """Close the store of *app* and read its settings afresh the next time."""
    cached = app.__dict__.pop(_ATTRIBUTE, None)
    if cached is not None:
        cached.runtime.store.close()
