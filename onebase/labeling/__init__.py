"""The pages on which people rank answers, and the verbs around them."""
