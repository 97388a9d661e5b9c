"""Reading answers: from a response to the values that it states, and whether two of them are equal.

extraction   which text of a response counts as its answer; boxes: the last box, and what is around it
notation     one spelling for what is written in many ways (string work, no SymPy); spellings: the rewrites
units        units of measurement, in any spelling
wording      words around a value: which state it, change it, deny it or count it
choices      the letters of multiple choice; verdicts: yes and no, true and false
reading      the grammar, into records; parts, regions: how an answer falls apart, conditions and intervals
mathematics  expressions by math-verify's parser and SymPy; numbers: plain ones; cost: what is not evaluated
equality     when two readings are the same answer; names: words, and names of points and variables
"""
