"""The screen: events reduced to a state, the state drawn as text, the text brought to a terminal or into a file."""
