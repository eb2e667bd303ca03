"""Storage plugins. Modules that other packages put in their own ``twistedkv/plugins`` directories are found as well."""

from twisted.plugin import pluginPackagePaths

__path__.extend(pluginPackagePaths(__name__))
__all__: list[str] = []  # nothing to import: ask twisted.plugin.getPlugins
