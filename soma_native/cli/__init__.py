"""The command `soma-native`: reads its arguments, calls the library, prints. Each subcommand has a module."""
