"""What tests share: a clock that jumps, a provider that follows a script, a core assembled around both."""
