"""Reading answers: from a response to the values that it states, and whether two of them are equal.

extraction   which text of a response counts as its answer
notation     one spelling for what is written in many ways (string work, no SymPy)
units        units of measurement, in any spelling, and what may be missing
wording      words around a value: which state it, change it, deny it or count it
choices      the letters of multiple choice
mathematics  expressions by math-verify's parser and SymPy, with a bound on what evaluating them may cost
reading      the grammar: parts, relations, names, sequences, sets, ratios, values
equality     when two readings are the same answer
"""
