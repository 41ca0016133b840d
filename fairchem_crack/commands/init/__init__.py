"""`fairchem-crack init`: a first YAML for data of one's own, from a look at them.

`command` has the options, `data` and `teacher` look at what is given, `recipe` chooses, and `page` writes the YAML.
"""
