"""The command `soma-native`: reads its arguments, calls the library, prints. One module a subcommand."""
