"""Files that are whole or not there: written aside and put in place, weights beside what names them."""
